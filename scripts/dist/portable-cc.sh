#!/usr/bin/env bash
# The linker of portable builds: the C compiler, with start files and C library of the folder $BIDPO_SYSROOT (sysroot.sh). rustc tells
# by its name how it is called. The system's libgcc_s needs symbols of a newer C library than that folder has: they are its own affair.
set -euo pipefail
exec "${BIDPO_CC:-cc}" -B"$BIDPO_SYSROOT" -L"$BIDPO_SYSROOT" -Wl,--allow-shlib-undefined "$@"

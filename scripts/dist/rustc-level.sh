#!/usr/bin/env bash
# rustc for the crates of this workspace (RUSTC_WORKSPACE_WRAPPER): with the features $BIDPO_FEATURES where it compiles for the archive.
# Not by RUSTFLAGS: the crate cc would hand them to every C++ file of llama.cpp, which then rounds otherwise than in a build from source.
set -euo pipefail
case " $* " in
*" --target "*) exec "$@" -C "target-feature=$BIDPO_FEATURES" ;;
*) exec "$@" ;;
esac

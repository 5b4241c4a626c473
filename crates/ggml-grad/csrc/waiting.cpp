// How long threads of a graph wait awake.
//
// ggml's threads meet after every node. Its own barrier spins without end: where another program has a core, a thread waits
// for one that does not run, and takes the other core from it. OpenMP's barrier, with which llama.cpp is built here
// (Cargo.toml), spins for a while and then sleeps. GNU's runtime takes the length from the environment when it starts: it is
// set here before, unless the user set it.

#include <cstdlib>

namespace {

// Turns of GNU's waiting loop, each one `pause`: some tens of microseconds. Waking a thread takes about as long. Its default,
// 300,000, is milliseconds: as long as a core's share of time on a busy machine.
constexpr const char * turns = "2000";

// Before the runtime's constructor, which has no priority.
__attribute__((constructor(101))) void set_turns() {
#if defined(__linux__)
    setenv("GOMP_SPINCOUNT", turns, 0);
#endif
}

} // namespace

// Does nothing. A call keeps this file in what is linked.
extern "C" void ggml_grad_waiting() {}

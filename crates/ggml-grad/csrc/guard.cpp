// The one place where C++ exceptions end.
//
// llama.cpp throws, and ggml's asserts call an abort callback. Neither may reach Rust: a call is made from inside of
// ggml_grad_guard, which turns both into a message. An assert becomes an exception only on a thread that is inside of a
// guarded call and not computing a graph: elsewhere other threads would wait for this one forever.

#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

namespace {

// Guarded calls on this thread that an assert may leave.
thread_local int leavable = 0;

// Sets the counter for a scope, however it is left.
struct Scope {
    int before;
    explicit Scope(int now) : before(leavable) { leavable = now; }
    ~Scope() { leavable = before; }
};

// "FILE:LINE: GGML_ASSERT(X) failed" without the path of the machine that built it.
std::string words(const char * message) {
    const std::string text = message;
    const std::string name = "GGML_ASSERT(", end = ") failed";
    const size_t at = text.find(name), last = text.rfind(end);
    if (at != std::string::npos && last != std::string::npos && last > at + name.size()) {
        const std::string check = text.substr(at + name.size(), last - at - name.size());
        return "the check `" + check + "` of llama.cpp failed";
    }
    // After "FILE:LINE: ", whose file may hold a colon on some systems, but no ": ".
    const size_t start = text.find(": ");
    return start == std::string::npos ? text : text.substr(start + 2);
}

int told(char * what, size_t n, const char * text) {
    if (n > 0) {
        std::snprintf(what, n, "%s", text);
    }
    return 1;
}

} // namespace

extern "C" {

// Says why and ends the process (abort.rs).
void ggml_grad_last_words(const char * message);

// Calls call(data). 0: it returned. 1: it threw, and `what` holds the reason.
int ggml_grad_guard(void (*call)(void *), void * data, char * what, size_t n) noexcept {
    try {
        const Scope scope(1);
        call(data);
        return 0;
    } catch (const std::exception & error) {
        return told(what, n, error.what());
    } catch (...) {
        return told(what, n, "an exception without a reason");
    }
}

// From now until the guarded call returns, an assert on this thread ends the process: a graph is being computed.
void ggml_grad_computing(void) noexcept {
    leavable = 0;
}

// ggml's abort callback: throws where the caller can go on, else ends the process.
void ggml_grad_on_abort(const char * message) {
    if (leavable > 0 && message != nullptr) {
        throw std::runtime_error(words(message));
    }
    ggml_grad_last_words(message);
}

// Throws, for tests.
void ggml_grad_throw(const char * message) {
    throw std::runtime_error(message);
}

// Writes words(message), for the reason that a process ends with.
void ggml_grad_words(const char * message, char * what, size_t n) noexcept {
    try {
        told(what, n, words(message).c_str());
    } catch (...) {
        told(what, n, "");
    }
}

}

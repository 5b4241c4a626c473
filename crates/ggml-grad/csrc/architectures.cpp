// The architectures that llama.cpp knows. It has the list for its own programs, in C++ only.

// Of llama.cpp's src/llama-arch.h, whose enum counts from 0.
enum llm_arch : unsigned;

const char * llm_arch_name(llm_arch arch);

extern "C" {

// The name of architecture number i; llama.cpp's own word for an unknown one behind the last.
const char * ggml_grad_architecture(unsigned i) noexcept {
    return llm_arch_name(static_cast<llm_arch>(i));
}

}

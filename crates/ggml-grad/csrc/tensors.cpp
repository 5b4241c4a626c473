// The tensors of a loaded model. llama.cpp has the list for its own programs, in C++ only.

#include <string>
#include <utility>
#include <vector>

struct llama_model;
struct ggml_tensor;

// Of llama.cpp's src/llama-model.h.
const std::vector<std::pair<std::string, ggml_tensor *>> & llama_internal_get_tensor_map(const llama_model * model);

extern "C" {

// Calls visit(data, name, tensor) for each weight of the model. visit must not throw.
void ggml_grad_each_tensor(
    const llama_model * model, void (*visit)(void *, const char *, const ggml_tensor *), void * data) noexcept {
    for (const auto & entry : llama_internal_get_tensor_map(model)) {
        visit(data, entry.first.c_str(), entry.second);
    }
}

}

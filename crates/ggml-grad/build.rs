//! Compiles the shim over llama.cpp's C++: where its exceptions end (`csrc/guard.cpp`), a model's tensors
//! (`csrc/tensors.cpp`), the names of architectures (`csrc/architectures.cpp`), and how long threads wait awake
//! (`csrc/waiting.cpp`).

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    let files = ["csrc/guard.cpp", "csrc/tensors.cpp", "csrc/architectures.cpp", "csrc/waiting.cpp"];
    // llama-cpp-sys-2 links the C++ library.
    cc::Build::new().cpp(true).std("c++17").cpp_link_stdlib(None).files(files).compile("ggml_grad_shim");
}

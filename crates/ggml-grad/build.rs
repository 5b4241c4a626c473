//! Compiles the shim over llama.cpp's C++: where its exceptions end (`csrc/guard.cpp`), a model's tensors
//! (`csrc/tensors.cpp`), and the names of architectures (`csrc/architectures.cpp`).

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    let files = ["csrc/guard.cpp", "csrc/tensors.cpp", "csrc/architectures.cpp"];
    // llama-cpp-sys-2 links the C++ library.
    cc::Build::new().cpp(true).std("c++17").cpp_link_stdlib(None).files(files).compile("ggml_grad_shim");
}

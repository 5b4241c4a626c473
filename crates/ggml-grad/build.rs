//! Compiles the shim at which C++ exceptions end (`csrc/guard.cpp`).

fn main() {
    println!("cargo:rerun-if-changed=csrc/guard.cpp");
    // llama-cpp-sys-2 links the C++ library.
    cc::Build::new().cpp(true).std("c++17").cpp_link_stdlib(None).file("csrc/guard.cpp").compile("ggml_grad_guard");
}

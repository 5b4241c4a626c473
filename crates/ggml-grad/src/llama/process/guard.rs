//! Calls into llama.cpp that may throw: a C++ exception, or a failed assert of ggml, comes back as an error.
//!
//! An exception that reaches a Rust function ends the process, so these calls are declared `C-unwind` and made from inside
//! of a C++ function that catches (`csrc/guard.cpp`). Between the two lies nothing but [`call`], which owns nothing.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

/// llama.cpp's functions, allowed to throw; the types are those of the bindings.
pub(in crate::llama) mod throwing {
    use crate::llama::sys;
    use std::ffi::{c_char, c_void};

    unsafe extern "C-unwind" {
        pub(crate) fn llama_model_load_from_file(
            path: *const c_char,
            params: sys::llama_model_params,
        ) -> *mut sys::llama_model;
        pub(crate) fn llama_init_from_model(
            model: *mut sys::llama_model,
            params: sys::llama_context_params,
        ) -> *mut sys::llama_context;
        pub(crate) fn llama_decode(ctx: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
        pub(crate) fn llama_synchronize(ctx: *mut sys::llama_context);
        pub(crate) fn llama_set_adapter_cvec(
            ctx: *mut sys::llama_context,
            data: *const f32,
            len: usize,
            n_embd: i32,
            first: i32,
            last: i32,
        ) -> i32;
        pub(crate) fn llama_adapter_lora_init(
            model: *mut sys::llama_model,
            path: *const c_char,
        ) -> *mut sys::llama_adapter_lora;
        pub(crate) fn llama_set_adapters_lora(
            ctx: *mut sys::llama_context,
            adapters: *mut *mut sys::llama_adapter_lora,
            n_adapters: usize,
            scales: *mut f32,
        ) -> i32;
        pub(crate) fn llama_tokenize(
            vocab: *const sys::llama_vocab,
            text: *const c_char,
            n_text: i32,
            tokens: *mut i32,
            n_tokens: i32,
            add_special: bool,
            parse_special: bool,
        ) -> i32;
        pub(crate) fn llama_token_to_piece(
            vocab: *const sys::llama_vocab,
            token: i32,
            buf: *mut c_char,
            length: i32,
            lstrip: i32,
            special: bool,
        ) -> i32;
        pub(crate) fn llama_chat_apply_template(
            template: *const c_char,
            chat: *const sys::llama_chat_message,
            n_messages: usize,
            add_assistant: bool,
            buf: *mut c_char,
            length: i32,
        ) -> i32;
        pub(crate) fn llama_sampler_sample(
            sampler: *mut sys::llama_sampler,
            ctx: *mut sys::llama_context,
            row: i32,
        ) -> i32;
        #[cfg(test)]
        pub(crate) fn llama_sampler_init_grammar(
            vocab: *const sys::llama_vocab,
            grammar: *const c_char,
            root: *const c_char,
        ) -> *mut sys::llama_sampler;
        pub(crate) fn llama_sampler_apply(sampler: *mut sys::llama_sampler, tokens: *mut sys::llama_token_data_array);
        pub(crate) fn llama_sampler_accept(sampler: *mut sys::llama_sampler, token: i32);
        pub(crate) fn gguf_init_from_file(path: *const c_char, params: sys::gguf_init_params)
        -> *mut sys::gguf_context;
        #[cfg(test)]
        pub(crate) fn ggml_grad_throw(message: *const c_char);
        pub(in crate::llama) fn ggml_grad_guard(
            call: unsafe extern "C-unwind" fn(*mut c_void),
            data: *mut c_void,
            what: *mut c_char,
            n: usize,
        ) -> std::ffi::c_int;
    }
}

unsafe extern "C" {
    fn ggml_grad_computing();
    fn ggml_grad_words(message: *const c_char, what: *mut c_char, n: usize);
}

/// Longest reason that is kept.
const LONGEST: usize = 1024;

struct Call<F, R> {
    function: Option<F>,
    result: MaybeUninit<R>,
}

/// # Safety
/// `data` points to a [`Call`] whose function is there.
unsafe extern "C-unwind" fn call<F: FnOnce() -> R, R: Copy>(data: *mut c_void) {
    // SAFETY: by contract; the guard calls this once.
    let call = unsafe { &mut *data.cast::<Call<F, R>>() };
    if let Some(function) = call.function.take() {
        call.result.write(function());
    }
}

/// Makes a call into llama.cpp. `function` does nothing but that: it is left without a trace where the call throws, so it
/// must not panic, nor own what has to be dropped.
///
/// # Errors
/// What was thrown, or which assert failed.
pub(in crate::llama) fn guarded<F: FnOnce() -> R, R: Copy>(function: F) -> Result<R, String> {
    const { assert!(!std::mem::needs_drop::<F>()) }
    let mut state = Call { function: Some(function), result: MaybeUninit::uninit() };
    let mut what = [0 as c_char; LONGEST];
    // SAFETY: state and buffer outlive the call; `call` is given the type that it was made for.
    let threw: c_int = unsafe {
        throwing::ggml_grad_guard(call::<F, R>, (&raw mut state).cast::<c_void>(), what.as_mut_ptr(), what.len())
    };
    if threw == 0 {
        // SAFETY: `call` returned, so the result was written.
        Ok(unsafe { state.result.assume_init() })
    } else {
        Err(text(&what))
    }
}

/// Says that this thread computes a graph from now on: a failed assert ends the process until the guarded call is over.
pub(in crate::llama) fn computing() {
    // SAFETY: sets a variable of this thread.
    unsafe { ggml_grad_computing() };
}

/// What ggml said, without the path of the machine that built it.
pub(in crate::llama) fn without_path(message: &CStr) -> String {
    let mut what = [0 as c_char; LONGEST];
    // SAFETY: NUL-terminated; the buffer holds what is said of it.
    unsafe { ggml_grad_words(message.as_ptr(), what.as_mut_ptr(), what.len()) };
    text(&what)
}

fn text(buffer: &[c_char; LONGEST]) -> String {
    // SAFETY: snprintf ends its text with a NUL byte inside of the buffer, which began as zeros.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_come_back_as_errors() {
        for _ in 0..3 {
            // SAFETY: a NUL-terminated text.
            let thrown = guarded(|| unsafe { throwing::ggml_grad_throw(c"no such token".as_ptr()) });
            assert_eq!(thrown, Err("no such token".into()));
            assert_eq!(guarded(|| 7), Ok(7));
        }
    }

    #[test]
    fn asserts_come_back_as_errors_and_name_no_path() {
        crate::llama::init();
        let abort = |text: &'static CStr| {
            // SAFETY: texts are NUL-terminated and hold no format.
            guarded(move || unsafe { sys_abort(c"/build/ggml.c".as_ptr(), 7, text.as_ptr()) })
        };
        assert_eq!(
            abort(c"GGML_ASSERT(a->ne[0] >= k) failed").unwrap_err(),
            "the check `a->ne[0] >= k` of llama.cpp failed"
        );
        assert_eq!(abort(c"fatal error: unknown type").unwrap_err(), "fatal error: unknown type");
        assert_eq!(without_path(c"/a/b.cpp:12: out of memory"), "out of memory");
    }

    unsafe extern "C-unwind" {
        #[link_name = "ggml_abort"]
        fn sys_abort(file: *const c_char, line: c_int, format: *const c_char, ...);
    }
}

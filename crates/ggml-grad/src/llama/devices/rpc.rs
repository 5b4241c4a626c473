//! llama.cpp's RPC backend: devices of other machines, and this machine's devices for others.
//!
//! The protocol has no authentication and no encryption: whoever reaches a worker's port can run graphs on it and read what
//! they computed.

use crate::llama::{LlamaError, init, sys};
use std::ffi::{CStr, CString, c_char, c_void};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Time for a worker's answer to the first message; after that it counts as busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// `ggml-rpc.h`: the protocol of the llama.cpp that this build contains.
const PROTOCOL_MAJOR: u8 = 7;
const PROTOCOL_MINOR: u8 = 0;
/// Number of the greeting, and the bytes that a client says about itself in it (all zero: plain TCP).
const HELLO: u8 = 14;
const CAPABILITIES: usize = 24;

type AddServer = unsafe extern "C" fn(*const c_char) -> sys::ggml_backend_reg_t;
type StartServer = unsafe extern "C" fn(*const c_char, *const c_char, usize, usize, *mut sys::ggml_backend_dev_t);

/// A function of the RPC backend, None where this build has none.
fn function(name: &CStr) -> Option<*mut c_void> {
    init();
    // SAFETY: the registry answers NULL for what it does not know; names are NUL-terminated.
    unsafe {
        let reg = sys::ggml_backend_reg_by_name(c"RPC".as_ptr());
        if reg.is_null() {
            return None;
        }
        let p = sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr());
        (!p.is_null()).then_some(p)
    }
}

fn no_backend() -> LlamaError {
    LlamaError::Device(
        "this build has no RPC backend: build inside the repository, where .cargo/config.toml says GGML_RPC=ON, or with \
         GGML_RPC=ON in the environment (after `cargo clean -p llama-cpp-sys-2`)"
            .into(),
    )
}

/// Splits `host:port` and resolves it. ggml knows IPv4 alone, so that is what is given.
///
/// # Errors
/// [`LlamaError::Device`] for a text that is no `host:port`, or a name that is not known or has no IPv4 address.
pub fn resolve(endpoint: &str) -> Result<Vec<SocketAddr>, LlamaError> {
    let form = || LlamaError::Device(format!("{endpoint:?} is not of the form HOST:PORT, such as 127.0.0.1:50052"));
    let (host, port) = endpoint.rsplit_once(':').ok_or_else(form)?;
    let port: u16 = port.parse().map_err(|_| form())?;
    if host.is_empty() || port == 0 {
        return Err(form());
    }
    let addresses: Vec<SocketAddr> = (host.trim_matches(['[', ']']), port)
        .to_socket_addrs()
        .map_err(|e| LlamaError::Device(format!("{endpoint}: {e}")))?
        .filter(SocketAddr::is_ipv4)
        .collect();
    if addresses.is_empty() {
        return Err(LlamaError::Device(format!("{endpoint} has no IPv4 address, and llama.cpp's RPC knows no other")));
    }
    Ok(addresses)
}

/// Connects to a worker and makes its devices known to llama.cpp. Returns ggml's handles of them; a second call for the same
/// worker gives the same ones.
///
/// ggml ends the process where a worker cannot be reached or speaks another version, so all of that is tried here first.
///
/// # Errors
/// [`LlamaError::Device`] that says what the worker did not do.
pub(in crate::llama) fn connect(endpoint: &str) -> Result<Vec<sys::ggml_backend_dev_t>, LlamaError> {
    static KNOWN: std::sync::Mutex<Vec<(SocketAddr, usize)>> = std::sync::Mutex::new(Vec::new());
    let add = function(c"ggml_backend_rpc_add_server").ok_or_else(no_backend)?;
    // One at a time: a worker serves one client, and two greetings at once would wait for each other.
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let addresses = resolve(endpoint)?;
    let reg = match known.iter().find(|(known, _)| addresses.contains(known)) {
        Some((_, reg)) => *reg as sys::ggml_backend_reg_t,
        None => {
            // The address and not its name: ggml writes it into the names of tensors, which are short.
            let address = greet(endpoint, &addresses)?;
            let name =
                CString::new(address.to_string()).map_err(|_| LlamaError::Device("a NUL byte in --rpc".into()))?;
            // SAFETY: the address is that of this function (ggml-rpc.h); the registry it returns lives forever.
            let reg = unsafe { std::mem::transmute::<*mut c_void, AddServer>(add)(name.as_ptr()) };
            // SAFETY: a live registry.
            if reg.is_null() || unsafe { sys::ggml_backend_reg_dev_count(reg) } == 0 {
                return Err(LlamaError::Device(format!("the worker at {endpoint} offers no device")));
            }
            // SAFETY: a live registry, registered once. The backend is never freed: it keeps the connection, without which
            // another client could come in between, and this one would wait for it.
            unsafe {
                sys::ggml_backend_register(reg);
                sys::ggml_backend_dev_init(sys::ggml_backend_reg_dev_get(reg, 0), std::ptr::null());
            }
            known.push((address, reg as usize));
            reg
        }
    };
    // SAFETY: indices below the count are valid.
    Ok(unsafe { (0..sys::ggml_backend_reg_dev_count(reg)).map(|i| sys::ggml_backend_reg_dev_get(reg, i)).collect() })
}

/// Makes the devices of a worker known: they are among [`crate::llama::devices`] from then on.
///
/// # Errors
/// [`LlamaError::Device`] that says what the worker did not do.
pub fn connect_worker(endpoint: &str) -> Result<(), LlamaError> {
    connect(endpoint).map(|_| ())
}

/// Says hello to a worker, on a connection of its own. Returns the address at which it answered.
fn greet(endpoint: &str, addresses: &[SocketAddr]) -> Result<SocketAddr, LlamaError> {
    let mut refused = String::new();
    let mut stream = None;
    for address in addresses {
        match TcpStream::connect_timeout(address, PATIENCE) {
            Ok(s) => {
                stream = Some((s, *address));
                break;
            }
            Err(e) => refused = e.to_string(),
        }
    }
    let Some((mut stream, address)) = stream else {
        return Err(LlamaError::Device(format!(
            "no worker answers at {endpoint} ({refused}): start one there with `bidpo worker --listen {endpoint}`"
        )));
    };
    let mut hello = vec![HELLO];
    hello.extend_from_slice(&(CAPABILITIES as u64).to_le_bytes());
    hello.extend_from_slice(&[0; CAPABILITIES]);
    let mut answer = [0u8; 8 + 4 + CAPABILITIES]; // size, version, capabilities
    let talk = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(&hello))
        .and_then(|()| stream.read_exact(&mut answer));
    if let Err(e) = talk {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        let why = match e.kind() {
            WouldBlock | TimedOut => {
                "does not answer: a worker serves one client at a time, so another one may be using it".to_owned()
            }
            _ => format!("does not speak llama.cpp's RPC protocol ({e})"),
        };
        return Err(LlamaError::Device(format!("what listens at {endpoint} {why}")));
    }
    let (major, minor) = (answer[8], answer[9]);
    if major != PROTOCOL_MAJOR || minor > PROTOCOL_MINOR {
        return Err(LlamaError::Device(format!(
            "the worker at {endpoint} speaks version {major}.{minor} of the protocol, this bidpo \
             {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}: run the same bidpo on both sides"
        )));
    }
    Ok(address)
}

/// Offers devices of this machine (`names`; none: every GPU, else the CPU) to clients of `endpoint`, one client at a time.
/// Returns only when that fails.
///
/// # Errors
/// [`LlamaError::Device`]: no RPC backend in this build, an unknown device, or an address that cannot be listened on.
pub fn serve(endpoint: &str, names: &[String], n_threads: u32) -> Result<(), LlamaError> {
    let start = function(c"ggml_backend_rpc_start_server").ok_or_else(no_backend)?;
    let address = resolve(endpoint)?[0];
    let mut devices = if names.is_empty() {
        match crate::llama::devices::local_gpus() {
            gpus if gpus.is_empty() => vec![crate::llama::devices::find_device("CPU")?],
            gpus => gpus,
        }
    } else {
        names.iter().map(|n| crate::llama::devices::find_device(n)).collect::<Result<_, _>>()?
    };
    let name = CString::new(address.to_string()).map_err(|_| LlamaError::Device("a NUL byte in --listen".into()))?;
    // SAFETY: the address is that of this function (ggml-rpc.h); all arguments outlive the call, which does not return
    // while it serves.
    unsafe {
        std::mem::transmute::<*mut c_void, StartServer>(start)(
            name.as_ptr(),
            std::ptr::null(),
            n_threads as usize,
            devices.len(),
            devices.as_mut_ptr(),
        );
    }
    Err(LlamaError::Device(format!(
        "cannot listen at {endpoint}: is another program using that port, and is the address one of this machine's?"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_host_and_port() {
        assert!(resolve("127.0.0.1:50052").unwrap()[0].is_ipv4());
        assert!(resolve("localhost:50052").unwrap().iter().all(SocketAddr::is_ipv4));
        assert!(resolve("[::1]:50052").unwrap_err().to_string().contains("IPv4"));
        for bad in ["", "127.0.0.1", ":50052", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x"] {
            let error = resolve(bad).unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_is_no_worker_is_said_before_ggml_meets_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let greet = |endpoint: &str| greet(endpoint, &resolve(endpoint).unwrap());
        // Another version; then somebody who hangs up.
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0u8; 9 + CAPABILITIES];
            stream.read_exact(&mut hello).unwrap();
            let mut answer = [0u8; 8 + 4 + CAPABILITIES];
            answer[0] = 28;
            answer[8] = 99;
            stream.write_all(&answer).unwrap();
            drop(listener.accept().unwrap());
        });
        let version = greet(&endpoint).unwrap_err().to_string();
        assert!(version.contains("99.0") && version.contains(&endpoint), "{version}");
        let closed = greet(&endpoint).unwrap_err().to_string();
        assert!(closed.contains("protocol"), "{closed}");
        other.join().unwrap();
        let gone = greet(&endpoint).unwrap_err().to_string();
        assert!(gone.contains("no worker answers") && gone.contains("bidpo worker"), "{gone}");
    }
}

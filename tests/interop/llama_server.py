"""llama-server's own code from the Python package xllamacpp, behind the options of the program that tests/interop.rs give it.

    python llama_server.py --host 127.0.0.1 --port P -m MODEL [-t N] [-c N] [-np N] [--no-repack] [--lora-init-without-apply]
        [--lora FILE] [--lora-scaled FILE:SCALE]

scripts/llama_server.sh makes a program of it. It answers until it is ended.
"""

import argparse
import time

import xllamacpp


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-m", dest="model", required=True)
    parser.add_argument("-t", dest="threads", type=int, default=1)
    parser.add_argument("-c", dest="context", type=int, default=512)
    parser.add_argument("-np", dest="slots", type=int, default=1)
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--lora-init-without-apply", action="store_true")
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--lora-scaled", action="append", default=[])
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames = [given.host]
    params.port = given.port
    params.n_ctx = given.context
    params.n_parallel = given.slots
    params.cpuparams.n_threads = given.threads
    params.cpuparams_batch.n_threads = given.threads
    params.no_extra_bufts = given.no_repack
    params.lora_init_without_apply = given.lora_init_without_apply
    params.warmup = False
    scaled = [(path, 1.0) for path in given.lora]
    scaled += [(path, float(scale)) for path, scale in (text.rsplit(":", 1) for text in given.lora_scaled)]
    adapters = []
    for path, scale in scaled:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, scale
        adapters.append(adapter)
    params.lora_adapters = adapters
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


main()

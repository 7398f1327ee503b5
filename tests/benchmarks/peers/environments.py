"""Each peer in a virtual environment of its own, made once: its pins and ours do not go together (PINS says which and why).

python tests/benchmarks/peers/environments.py [TOOL…]    makes them ahead of a run
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONSTRAINTS = ROOT / "constraints.txt"
HOME = Path(os.environ.get("HUBQUANT_PEERS", ROOT / ".cache/peers")).resolve()
HUBQUANT = "hubquant"
MADE = ".installed"

COMMON = ("torch", "transformers", "accelerate", "safetensors", "huggingface_hub", "numpy")
LLAMA_CPP = "llama-cpp-python==0.3.36"  # its source carries llama.cpp's whole tree
LLAMA_TARGETS = ("llama-quantize", "llama-imatrix", "llama-tokenize")
# What makes the tool's environment: the arguments of one `pip install` after another.
PINS: dict[str, tuple[tuple[str, ...], ...]] = {
    # asks for newer torch and pillow than it needs: its other dependencies are named and it is installed without them
    "gptqmodel": (
        ("-c", str(CONSTRAINTS), *COMMON, "datasets", "defuser", "device-smi", "dill", "logbar", "ninja", "pillow", "protobuf"),
        ("-c", str(CONSTRAINTS), "pypcre", "requests", "threadpoolctl", "tokenicer", "torchao", "setuptools>=84.2.1,<85", "wheel"),
        ("--no-deps", "--no-build-isolation", "gptqmodel==7.7.0"),
    ),
    # wants transformers of at most 5.17
    "llmcompressor": (("torch==2.13.0", "llmcompressor==0.14.0.1"),),
    "autoround": (("-c", str(CONSTRAINTS), *COMMON, "gguf", "auto-round==0.16.1"),),
    "llamacpp": (("-c", str(CONSTRAINTS), *COMMON, "gguf", "sentencepiece", "protobuf", "cmake", "ninja"),),
}
PACKAGES = {"gptqmodel": "gptqmodel", "llmcompressor": "llmcompressor", "autoround": "auto-round", "llamacpp": "llama-cpp-python"}


def python(tool: str) -> Path:
    """The interpreter that runs the tool; hubquant's is this one."""
    return Path(sys.executable) if tool == HUBQUANT else HOME / tool / "bin/python"


def llama_source() -> Path:
    """llama.cpp's tree."""
    return HOME / "llamacpp/source/vendor/llama.cpp"


def llama_program(name: str) -> Path:
    return HOME / "llamacpp/build/bin" / name


def ensure(tool: str) -> None:
    """Make the tool's environment unless it was made. Raises CalledProcessError if a step fails; a later call begins again."""
    folder = HOME / tool
    if tool == HUBQUANT or (folder / MADE).exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for arguments in PINS[tool]:
        _pip(tool, "install", *arguments)
    if tool == "gptqmodel":  # compiled at the first use, which would count as quantizing
        subprocess.run([str(python(tool)), "-c", "from gptqmodel import extension; extension.load('pack_block_cpu')"], check=True)
    if tool == "llamacpp":
        _build_llama_cpp(folder)
    (folder / MADE).touch()


def version(tool: str) -> str:
    """The version of the tool in its environment."""
    if tool == "llamacpp":
        return f"of {LLAMA_CPP.replace('==', ' ')}"
    name = PACKAGES.get(tool, tool)
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([str(python(tool)), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def _pip(tool: str, verb: str, *arguments: str) -> None:
    subprocess.run([str(python(tool)), "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *arguments], check=True)


def _build_llama_cpp(folder: Path) -> None:
    """llama.cpp's programs for this machine from the vendored source: some 15 minutes of CPU time."""
    _pip("llamacpp", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(folder / "download"), LLAMA_CPP)
    archive = next((folder / "download").glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "download", filter="data")
    (folder / "download" / archive.name.removesuffix(".tar.gz")).rename(folder / "source")
    off = [f"-DLLAMA_{part}=OFF" for part in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "BUILD_UI", "OPENSSL", "CURL")]
    path = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    build = str(folder / "build")
    configure = [
        "cmake",
        "-G",
        "Ninja",
        "-S",
        str(llama_source()),
        "-B",
        build,
        "-DGGML_NATIVE=ON",
        "-DBUILD_SHARED_LIBS=OFF",
        *off,
    ]
    subprocess.run(configure, check=True, env=path, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build, "--target", *LLAMA_TARGETS], check=True, env=path, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PINS:
        ensure(wanted)

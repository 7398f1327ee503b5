"""Which files go to large-file storage: .gitattributes as far as `filter=lfs` is concerned."""

from fnmatch import fnmatchcase

REGULAR_LIMIT_BYTES = 10 * 2**20
LFS_PATTERNS = [
    "*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*", "*.mlmodel", "*.model",
    "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.rar",
    "*.safetensors", "saved_model/**/*", "*.tar.*", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst",
    "*tfevents*",
]  # fmt: skip
DEFAULT_GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)


def lfs_patterns(gitattributes: str) -> list[str]:
    rows = (line.split() for line in gitattributes.splitlines() if not line.lstrip().startswith("#"))
    return [row[0] for row in rows if "filter=lfs" in row[1:]]


def is_lfs(path: str, size: int, sample: bytes, patterns: list[str]) -> bool:
    """By pattern, by size (more than 10 MiB), or because the first bytes are not text."""
    name = path.rpartition("/")[2]
    if size > REGULAR_LIMIT_BYTES or any(_matches(path, name, pattern) for pattern in patterns):
        return True
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 3  # a character cut off at the end of the sample is still text
    return False


def _matches(path: str, name: str, pattern: str) -> bool:
    if "/" not in pattern:
        return fnmatchcase(name, pattern)
    return fnmatchcase(path, pattern.lstrip("/").replace("**/", "*"))

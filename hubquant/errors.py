"""Every error hubquant raises on purpose. A message says what, with which value, and what to do.

HubquantError                exit code 1: one sentence for the user
├── UsageError               2: the command line or hubquant.toml asks for something that does not exist
├── BadModel                 the base cannot be quantized: pickle only, unknown architecture, damaged or missing files
│   └── UnknownFamily        a GGUF file of an architecture that hubquant cannot read back
├── DiskFull                 not enough space where a step must write
├── MemoryShort              not enough memory for what was asked, predicted before it begins
├── WorkerBusy               another worker has this state folder
├── FolderBusy               another process is at work in this output folder
├── HubError                 the Hub refused or did not answer
│   ├── HubUnavailable       after all retries: 429, 5xx, network; trying later may help
│   ├── NotAuthorized        no token, a read-only token, or no right to this namespace
│   ├── GatedModel           the base is gated and this token has no access
│   └── RepoGone             the repo, revision or file is not there (any more)
└── QualityRefused           measured, and worse than the limits: not published
"""


class HubquantError(Exception):
    exit_code = 1


class UsageError(HubquantError):
    exit_code = 2


class BadModel(HubquantError):
    pass


class UnknownFamily(BadModel):
    pass


class DiskFull(HubquantError):
    pass


class MemoryShort(HubquantError):
    pass


class WorkerBusy(HubquantError):
    pass


class FolderBusy(HubquantError):
    pass


class HubError(HubquantError):
    pass


class HubUnavailable(HubError):
    pass


class NotAuthorized(HubError):
    pass


class GatedModel(HubError):
    pass


class RepoGone(HubError):
    pass


class QualityRefused(HubquantError):
    pass

"""The command line: one command per verb, each calls one function; exits.py has the exit codes. `--json` prints one JSON document
on stdout and nothing else."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from hubquant import __version__, console, exits, memory
from hubquant.artifact import Base, Report
from hubquant.config import Settings
from hubquant.errors import HubquantError, UsageError
from hubquant.recipe import DEFAULT_VARIANTS, KNOWN_VARIANTS, Calibration, EvaluationPlan, Recipe, variant

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantized models: made in one pass, measured, published.",
)

Model = Annotated[str, typer.Argument(help="A model on the Hub (ORGANISATION/NAME), a folder, or a GGUF file in 16 bit.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Config = Annotated[Path, typer.Option("--config", "-c", help="Settings of the bot.")]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", "-v", help=f"What to make; repeat it. There are {KNOWN_VARIANTS}. Default: the first five."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; a GPU if there is one.", show_default=False)]
Refine = Annotated[int, typer.Option(help="Steps of learning the scales from the base's output, after the pass.", min=0)]
DEFAULT_CONFIG = Path("hubquant.toml")
T = TypeVar("T", bound=BaseModel)


@app.command()
def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    variants: Variants = None,
    calibration: Annotated[str, typer.Option(help="Calibration text: a file, or a bundled one by name.")] = "prose-calib",
    windows: Annotated[int, typer.Option(help="Calibration windows.", min=1)] = Calibration().windows,
    window: Annotated[int, typer.Option(help="Tokens per calibration window.", min=2)] = Calibration().window,
    all_experts: Annotated[bool, typer.Option("--all-experts", help="Show every calibration token to every expert.")] = False,
    text: Annotated[str, typer.Option(help="Evaluation text: a file, or a bundled one by name.")] = "prose-eval",
    protocol: Annotated[
        list[str] | None, typer.Option(help="Evaluation protocol, gptq-N or llamacpp-N; the first decides.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens of the evaluation text that are used.", min=2)
    ] = EvaluationPlan().max_tokens,
    recipe_file: Annotated[Path | None, typer.Option("--recipe", help="A recipe as JSON, instead of the options above.")] = None,
    base_file: Annotated[Path | None, typer.Option("--base", help="What is known of a base folder, as JSON.", hidden=True)] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="An importance matrix of llama.cpp, for a GGUF file as MODEL, instead of calibrating.")
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(help="GPTQ: another setting for the linears whose name matches, as REGEX=int8-g64 or REGEX=16; repeat it."),
    ] = None,
    refine: Refine = 0,
    evaluation: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Measure what was made.")] = True,
    anyway: Annotated[bool, typer.Option("--anyway", help="Begin even if memory or disk will not be enough.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Remove what an earlier command has made in the folder.")] = False,
    device: Device = "",
    as_json: Json = False,
) -> None:
    """Make every variant of MODEL in one pass over its layers, and measure each from its bytes."""
    from hubquant import output, pipeline
    from hubquant.calibrate.source import with_texts

    if recipe_file is not None:
        recipe = _read(Recipe, recipe_file)
    else:
        protocols = tuple(protocol or EvaluationPlan().protocols)
        recipe = Recipe(
            variants=tuple(variants or DEFAULT_VARIANTS),
            calibration=Calibration(source=calibration, windows=windows, window=window, all_experts=all_experts),
            evaluation=EvaluationPlan(source=text, protocols=protocols, max_tokens=max_tokens),
            dynamic=tuple(dynamic or ()),
            refine=refine,
        )
    if imatrix is not None and not model.endswith(".gguf"):
        raise UsageError("--imatrix goes with a GGUF file as MODEL; a folder is calibrated in the pass itself")
    if dynamic and not any(variant(name).format == "gptq" for name in recipe.variants):
        raise UsageError("--dynamic is for GPTQ, and none of the variants is (as gptq-int4-g128)")
    output.check_folder(out, replace)
    folder, base = _model(model) if base_file is None else (Path(model), _read(Base, base_file))
    with console.bars() as progress:
        report = pipeline.quantize(folder, out, with_texts(recipe), base, progress, imatrix=imatrix, anyway=anyway, device=device)
        if evaluation:
            report = pipeline.evaluate(out, folder, progress, device=device)
    _show(report, as_json)
    if not as_json:
        following = f"publish {out} --to YOUR-NAME" if evaluation else f"evaluate {out} --base {model}"
        made = ", ".join(str(artifact.path(out).relative_to(out)) for artifact in report.artifacts)
        console.people().print(f"in {out}: {made}\nnext: hubquant {following}")


@app.command()
def plan(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the output would go: its disk is looked at.")] = Path(),
    variants: Variants = None,
    windows: Annotated[int, typer.Option(help="Calibration windows.", min=1)] = Calibration().windows,
    window: Annotated[int, typer.Option(help="Tokens per calibration window.", min=2)] = Calibration().window,
    refine: Refine = 0,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Settings of the bot, for its policy's answer.")] = None,
    as_json: Json = False,
) -> None:
    """What `quantize` would do with MODEL and need for it: sizes, memory, disk, time, and with --config the policy's answer."""
    from hubquant.plan import plan as planned

    settings = None if config is None else Settings.read(config)
    recipe = Recipe() if settings is None else settings.recipe
    calibration = recipe.calibration.model_copy(update={"windows": windows, "window": window})
    asked = {"variants": tuple(variants or recipe.variants), "calibration": calibration, "refine": refine or recipe.refine}
    recipe = recipe.model_copy(update=asked)
    found = planned(model, Recipe.model_validate(recipe.model_dump()), out, settings)
    if as_json:
        _print_json(found)
        return
    for part in console.plan_tables(found):
        console.people().print(part)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="An output folder of `hubquant quantize`.")],
    base: Annotated[str, typer.Option("--base", help="The base model: on the Hub, a folder, or a GGUF file.")],
    text: Annotated[str, typer.Option(help="A text file instead of the recipe's text.")] = "",
    protocol: Annotated[list[str] | None, typer.Option(help="gptq-N or llamacpp-N instead of the recipe's; repeat it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of the text instead of the recipe's number.", min=2)] = None,
    device: Device = "",
    as_json: Json = False,
) -> None:
    """Measure every artifact of FOLDER from its bytes against the base: perplexity, KL divergence, top-1 agreement."""
    from hubquant import pipeline

    report = pipeline.read_report(folder)
    model, found = _model(base, report.base.revision)
    pinned = report.base.revision or found.revision  # of one kind only: the Hub's fingerprints are of other hashes than a folder's
    if not pinned and found.fingerprint != report.base.fingerprint:
        made_from, given = (f"{b.repo_id} {b.fingerprint[:12]}" for b in (report.base, found))
        raise UsageError(f"{folder} was made from {made_from}, and {base} is {given}; name the base that it was made from")
    with console.bars() as progress:
        report = pipeline.evaluate(folder, model, progress, tuple(protocol or ()), text, max_tokens, device)
    _show(report, as_json)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="An output folder, measured.")],
    to: Annotated[str, typer.Option("--to", help="Your account or organisation.")],
    private: Annotated[bool, typer.Option(help="Leave the repos private.")] = False,
    as_json: Json = False,
) -> None:
    """Publish what passed the gate: card, manifest and files, one atomic commit per repo."""
    from hubquant import pipeline
    from hubquant.config import Publish
    from hubquant.hub import publish as publishing
    from hubquant.hub.client import Hub

    report = pipeline.read_report(folder)
    repos = publishing.plan(report, to)
    refused = publishing.refused(report)
    if not repos:
        raise UsageError(f"nothing of {folder} can be published: {'; '.join(f'{v}: {why}' for v, why in refused.items())}")
    settings = Publish(namespace=to, private=private)
    done = [publishing.publish(Hub(), repo, report, folder, settings) for repo in repos]
    if as_json:
        _print_json({"published": [repo.model_dump(mode="json") for repo in done], "refused": refused})
        return
    out = console.people()
    for repo in done:
        out.print(f"{'published' if repo.changed else 'up to date'}: {repo.url}")
    for name, why in refused.items():
        out.print(f"not published: {name}: {why}")


@app.command()
def run(
    config: Config = DEFAULT_CONFIG,
    once: Annotated[bool, typer.Option("--once", help="One poll, work the queue until it is empty, end.")] = False,
    as_json: Json = False,
) -> None:
    """The bot: watch the Hub, decide, quantize, measure, publish. Until Ctrl-C, or once."""
    from hubquant.bot import worker
    from hubquant.botview import observer, summary_lines

    settings = Settings.read(config)
    out = console.people(as_json)
    work = worker.run_once if once else worker.run_forever
    with observer(out) as seen:
        summary = work(settings, observer=seen)
    for line in summary_lines(summary):
        out.print(line)
    if as_json:
        _print_json(summary)
    if once and summary.failed:
        raise typer.Exit(1)


@app.command()
def request(model: Model, variants: Variants = None, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Ask the bot for variants of MODEL. The same policy decides as for what the watcher finds."""
    from hubquant.bot import intake
    from hubquant.bot.job import Job
    from hubquant.hub.client import Hub

    settings = Settings.read(config)
    answer = intake.request(settings, Hub(settings.endpoint), model, tuple(variants or ()), os.environ.get("USER", "command line"))
    if not isinstance(answer, Job):
        raise HubquantError(f"{model} was declined: {answer.reason}")
    if as_json:
        _print_json(answer)
    else:
        console.people().print(f"job {answer.id}: {', '.join(answer.recipe.variants)} of {model}; `hubquant jobs` follows it")


class JobsVerb(StrEnum):
    list = "list"
    cancel = "cancel"
    retry = "retry"


@app.command()
def jobs(
    verb: Annotated[JobsVerb, typer.Argument(help="What to do.")] = JobsVerb.list,
    job_id: Annotated[str, typer.Argument(help="A job's id or its first digits.")] = "",
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """The bot's queue: list it, cancel a job, or take one up again."""
    from hubquant.bot import queue
    from hubquant.botview import jobs_table

    settings = Settings.read(config)
    if verb is JobsVerb.list:
        found = queue.list_jobs(settings)
    elif not job_id:
        raise UsageError(f"`hubquant jobs {verb}` needs a job's id; `hubquant jobs` lists them")
    else:
        found = [queue.cancel(settings, job_id) if verb is JobsVerb.cancel else queue.retry(settings, job_id)]
    if as_json:
        _print_json([job.model_dump(mode="json") for job in found])
    else:
        console.people().print(jobs_table(found) if found else "no jobs")


@app.command()
def hub(
    root: Annotated[Path, typer.Option(help="Folder of the Hub's files; made if it does not exist.")],
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """A local Hub: the Hub's API over files on disk, for trying things out and for tests."""
    from hubquant.hub.local.server import serve

    serve(root, host, port)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo keeps its Hub and state.")] = Path("hubquant-demo"),
    keep_serving: Annotated[bool, typer.Option("--serve", help="Keep the local Hub open to look at the published pages.")] = False,
    as_json: Json = False,
) -> None:
    """The whole line once, without account or network: local Hub, bundled model, watcher, all variants, cards, loading back."""
    from hubquant.demo.line import Demo

    result = Demo(folder, console.people(as_json)).run(keep_serving)
    if as_json:
        _print_json(result)


class KernelsVerb(StrEnum):
    bench = "bench"


@app.command()
def kernels(
    verb: Annotated[KernelsVerb, typer.Argument(help="bench: time them on this machine's GPU.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The CSV.")] = Path("kernels.csv"),
    only: Annotated[str, typer.Option(help="Only kernels with this in their name.")] = "",
    compiled: Annotated[bool, typer.Option(help="Also time definitions through torch.compile; takes minutes.")] = True,
) -> None:
    """The GPU kernels timed beside torch, torch.compile and Marlin: one CSV with device and versions. Needs a GPU."""
    from hubquant.kernelbench import bench

    lines = console.people()
    lines.print(f"{bench(out, only, compiled, lines.print)} cases: {out}")


@app.command(name="install-hf-extension")
def install_hf_extension() -> None:
    """Make `hf quant …` run hubquant, as an extension of the Hub's own command line."""
    from hubquant.integrations.hf_extension import install

    console.people().print(f"installed: {install()}; try `hf quant --help`")


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        typer.echo(f"hubquant {__version__}")
        raise typer.Exit


def main() -> None:
    """Console script."""
    memory.map_large()  # before there is a heap with holes
    exits.run(app)


def _model(name: str, revision: str = "") -> tuple[Path, Base]:
    """The model's folder, downloaded if it is on the Hub, or its GGUF file, and what is known of it."""
    from hubquant.hub import snapshot
    from hubquant.hub.client import Hub

    folder = Path(name)
    if folder.suffix == ".gguf":
        from hubquant.base import describe_gguf

        return folder, describe_gguf(folder)
    if folder.is_dir() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return folder, snapshot.fingerprint_folder(folder)
    client = Hub()
    base = snapshot.pin(client, name, revision or None)
    cache = Path(os.environ.get("HUBQUANT_CACHE", Path.home() / ".cache" / "hubquant"))
    return snapshot.download(client, base, cache / "models" / name.replace("/", "--") / base.revision), base


def _read(kind: type[T], path: Path) -> T:
    try:
        return kind.model_validate_json(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise UsageError(f"{path} is not a {kind.__name__.lower()}: {error.errors()[0]['msg']}") from None


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    out = console.people()
    for part in console.report_tables(report):
        out.print(part)


def _print_json(value: Any) -> None:
    print(value.model_dump_json(indent=2) if isinstance(value, BaseModel) else json.dumps(value, indent=2))

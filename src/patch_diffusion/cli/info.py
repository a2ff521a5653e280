"""The command ``patch-diffusion info``: the state of a run, or of this installation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import Json, RunPath, Verb
from patch_diffusion.errors import InputError, shown
from patch_diffusion.files import to_json, user_path
from patch_diffusion.runs.history import size_in_words
from patch_diffusion.runs.paths import RunPaths
from patch_diffusion.runs.time_spent import beside, clock, shares


@dataclass(frozen=True)
class Info(Verb):
    """Show the state of a run, or versions and devices.

    patch-diffusion info --json

    patch-diffusion info runs/photos

    patch-diffusion info runs/photos --follow

    patch-diffusion info runs/photos --report

    patch-diffusion info runs/photos runs/others --report compare.html
    """

    sources: Annotated[Positional[tuple[RunPath, ...]], arg(metavar="[RUN ...]")] = ()
    """Run folder, or several of them for --report; the folder of a race stands for all its runs. Or a sample, FILE.png,
    to see how it was made. Default: versions, devices and optional libraries."""
    follow: bool = False
    """Show the run live until it is complete or you press Ctrl-C; with --json, print its log line by line."""
    endings: ClassVar[dict[str, tuple[str, ...]]] = Verb.endings | {"--report": (".html", ".htm")}
    report: Annotated[str | None, arg(metavar="[FILE.html]")] = None
    """File for a page with curves, samples and settings; several runs are shown side by side. Without a file name,
    report.html in the run folder."""
    json: Json = None
    """Print the full description as JSON on stdout, or write it to a file."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Info:
        """Parse the arguments of ``info``, and refuse those that do not go together."""
        command = cls.parsed(arguments)
        if command.follow and command.report is not None:
            raise InputError("--follow shows a run and --report writes a page: take one of them")
        if command.follow and command.json:
            raise InputError("--follow prints the lines of the log as they come: give --json without a file")
        if not command.sources and (command.follow or command.report is not None):
            raise InputError(f"--{'follow' if command.follow else 'report'} needs RUN, the folder of a run")
        if len(command.sources) > 1 and not command.report:
            raise InputError("several runs are shown side by side on a page: say where, as in --report compare.html")
        return command

    def check_given(self) -> None:
        """Raise an `InputError` if there is no run to describe."""
        super().check_given()
        if self.report is None:
            for source in self.sources:
                if not _is_picture(source):
                    RunPaths(user_path(source)).check_is_run()

    def run(self) -> dict[str, Any]:
        """Describe, follow or report; print the main points, unless --json prints the full description."""
        if self.follow:
            from patch_diffusion.cli.follow import follow

            follow(self.sources[0], json=self.prints_json)
            return {}
        if self.report is not None:
            return self._report()
        if self.sources and _is_picture(self.sources[0]):
            return self._sample(self.sources[0])
        found = patch_diffusion.describe(self.sources[0]) if self.sources else patch_diffusion.environment()
        if not self.prints_json:
            lines = [f"{name:<12} {value}" for name, value in _main_points(found)] if self.sources else _table(found)
            say("\n".join(map(shown, lines)))
        return found

    def _sample(self, path: Path) -> dict[str, Any]:
        from patch_diffusion.cli.tables import points
        from patch_diffusion.sampling.pictures import metadata_of

        found = metadata_of(path)
        if not self.prints_json:
            settings = found.get("settings")
            rows = {**found, **(settings if isinstance(settings, dict) else {})}
            rows.pop("settings", None)
            told = {
                name: value if isinstance(value, str) else to_json(value, lines=False) for name, value in rows.items()
            }
            say("\n".join(points([(shown(name), shown(value)) for name, value in told.items()])))
        return found

    def _report(self) -> dict[str, Any]:
        from patch_diffusion.runs.comparison import runs_in, write_comparison
        from patch_diffusion.runs.report import write_report

        runs = [run for source in self.sources for run in runs_in(source)]
        if len(runs) == 1:
            return {"run": str(runs[0]), "report": str(write_report(runs[0], self.report or None))}
        if not self.report:
            raise InputError(
                f"{self.sources[0]} holds {len(runs)} runs, which are shown side by side: say where, as in --report "
                "compare.html"
            )
        return {"runs": [str(run) for run in runs], "report": str(write_comparison(runs, self.report))}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that says where the report is, if one was written."""
        return f"the report is in {result['report']}" if "report" in result else ""

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: the run was not changed."""
        return "; the run itself was not touched"


def _is_picture(source: Path) -> bool:
    return source.suffix.lower() == ".png" and not source.is_dir()


def _main_points(found: dict[str, Any]) -> list[tuple[str, str]]:
    model, options, progress = found["model"], found["options"], found["progress"]
    shape = height, width = model["resolution"]
    sizes = ", ".join(f"{size}: {share:.3g}" for size, share in options["patches"]["sizes"].items())
    images = f"{height}x{width}x{model['image_channels']}, {model['num_classes'] or 'no'} classes"
    network = f"{options['network']['kind']}, {model['parameters']:,} parameters"
    if not model["num_images"]:
        return [("run", f"{found['run']}, imported"), ("images", images), ("network", network)]
    context = options["patches"]["context"]
    sizes += f"; context {context}" if context else ""
    points = [
        ("run", f"{found['run']}, {'complete' if found['complete'] else 'not complete'}"),
        ("data", f"{options['data']['source'] or 'given in Python'}, {model['num_images']:,} images"),
        ("images", images),
        ("network", network),
        *([("tuned", _tuned(options["few_steps"], model["parent"]))] if options["few_steps"] else []),
        ("patches", f"whole {options['patches']['whole']:g}, the rest {sizes} ({options['patches']['kind']})"),
    ]
    if progress:
        points += [
            ("seen", f"{progress['step']:,} steps, {progress['images']:,} images"),
            ("trained", clock(progress["seconds"])),
            *([("time on", shares(found["time"])), ("in addition", beside(found["time"]))] if found["time"] else []),
            ("held out", _held_out(found) if options["data"]["held_out"] else "no images"),
            *_beside_floor(found),
            ("loss", ", ".join(f"{size_in_words(size, shape)} {loss:.3f}" for size, loss in found["losses"].items())),
        ]
    points.append(("checkpoints", ", ".join(f"{step:,}" for step in found["checkpoints"]) or "none yet"))
    if found["pictures"]:
        points.append(("samples", found["pictures"][-1]))
    return points


def _tuned(few_steps: int, parent: dict[str, Any]) -> str:
    from patch_diffusion.runs.folder import tuned_in_words

    return tuned_in_words(few_steps, parent)


def _held_out(found: dict[str, Any]) -> str:
    """Return the newest held-out loss of a run in words, and the best one."""
    if not found["held_out"]:
        return "loss not measured" + " yet" * (not found["complete"])
    step, loss, best_step, best_loss = found["held_out"].values()
    best = ", the best so far" if best_step == step else f"; the best was {best_loss:.3f} at step {best_step:,}"
    return f"loss {loss:.3f} at step {step:,}{best}"


def _beside_floor(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the held-out loss by noise level, and beside it that of the best linear denoiser."""
    floor, losses = found["linear_floor"], found["by_noise"]
    if not floor:
        return
    yield "linear floor", f"{floor['loss']:.3f}, the loss of the best linear denoiser"
    levels = [
        f"{level}: {loss:.2f} ({floor['by_noise'][level]:.2f})"
        for level, loss in losses.items()
        if loss is not None and level in floor["by_noise"]
    ]
    if levels:
        yield "by noise", f"held-out loss {', '.join(levels)}; the floor in brackets"


def _table(found: dict[str, Any]) -> Iterator[str]:
    """Yield versions, devices and what each extra lacks as lines of 80 columns."""
    from patch_diffusion.cli.tables import points

    versions = dict(found["versions"])
    named = [("version", versions.pop("patch_diffusion")), ("Python", f"{versions.pop('python')}, {found['system']}")]
    for device in found["devices"]:
        size = f"{device['memory'] / 2**30:,.1f} GB" if "memory" in device else f"{device['threads']} threads"
        named.append((device["device"], f"{device['name']}, {size}"))
    named.append(("libraries", " ".join(f"{name}=={version}" for name, version in versions.items())))
    missing = dict(found["missing"])
    if lacks := missing.pop("patch_diffusion"):
        named.append(("it lacks", ", ".join(lacks)))
    named.append(("extras", ", ".join(name for name, lacks in missing.items() if not lacks) or "none is complete"))
    lacking = [(name, f"lacks {', '.join(lacks)}") for name, lacks in missing.items() if lacks]
    named += [*lacking, *([("to add one", f"pip install 'patch_diffusion[{lacking[0][0]}]'")] if lacking else [])]
    return points(named)

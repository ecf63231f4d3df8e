"""The comparisons as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynorm_onnx.functions import REGISTRY
from dynorm_onnx.paper.experiment import Experiment, OutlierFit
from dynorm_onnx.paper.real_model import MEASURES, How, ModelComparison

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
TITLES: dict[How, str] = {
    "scalar": "one scalar, fitted to everything",
    "outliers": "one scalar, fitted to the outliers alone",
    "channels": "parameters, weight and bias for every channel",
    "coupled": "the same, behind the gain of channels that stay in the sum",
}


def print_experiment(experiments: Sequence[Experiment], console: Console) -> None:
    """A table per kind of norm, and what to read in it."""
    for experiment in experiments:
        norm = NORMS[experiment.kind]
        console.print(_fits(experiment, f"{norm}: each function fitted to the norm's output at 18 outliers"))
        if experiment.kind == "rms":
            console.print(
                f"DyISRU is RMSNorm itself where beta is the sum of the squares of all other channels: "
                f"{experiment.exact_beta:.4f}.",
                highlight=False,
            )
        best = min(experiment.fits, key=lambda fit: fit.residual)
        console.print(
            f"{op_type(best.function)} follows the outliers best. The other 99 channels of the same tokens it makes\n"
            f"{best.gains[0]:.1f} times (S = 1) to {best.gains[-1]:.1f} times (S = 9) as large as {norm} does.\n",
            highlight=False,
        )


def op_type(name: str) -> str:
    """The function's name in print."""
    return REGISTRY[name].op_type


def parameter_text(fit: OutlierFit) -> str:
    """The scalar of a fit, as the paper prints it."""
    name, value = next(iter(fit.parameters.items()))
    return f"{name} = {value:.4f}" if value > 1 else f"{name} = {value:.5f}"


def _fits(experiment: Experiment, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("function")
    for heading in ("fitted", "mean |residual|, outliers", "the other channels", "made too large by, S = 1", "S = 9"):
        table.add_column(heading, justify="right")
    for fit in experiment.fits:
        table.add_row(
            op_type(fit.function),
            parameter_text(fit),
            f"{fit.residual:.4g}",
            f"{fit.residual_others:.3f}",
            f"{fit.gains[0]:.2f}",
            f"{fit.gains[-1]:.2f}",
        )
    return table


def _sites(comparison: ModelComparison, how: How, functions: Sequence[str]) -> Table:
    table = Table(title=TITLES[how], title_justify="left")
    table.add_column("site", overflow="fold")
    for measure in MEASURES:
        for name in functions:
            table.add_column(f"{op_type(name)}\n{measure}", justify="right", no_wrap=True)
    for site in comparison.sites:
        fits = {fit.function: fit for fit in site.fitted(how)}
        cells = []
        for measure in MEASURES:
            best = site.best(how, measure)
            shown = {name: f"{getattr(fits[name], measure):.4f}" for name in functions}
            cells += [f"[bold]{text}[/bold]" if name == best else text for name, text in shown.items()]
        table.add_row(escape(site.name), *cells)
    return table


def print_model(comparison: ModelComparison, console: Console) -> None:
    """A table per way of fitting, a row per site; the smallest residual of a row is bold."""
    functions = tuple(REGISTRY)
    model, source = escape(str(comparison.model)), escape(comparison.source)
    console.print(f"{model}, {len(comparison.sites)} norms, on {source}. Mean |residual| of the", emoji=False)
    console.print("norm's output before its weight (root mean square 1); outliers: the largest 0.1 % of it.")
    for how in comparison.hows:
        console.print(_sites(comparison, how, functions))
    console.print("Best overall / on the outliers, at so many sites:")
    for how in comparison.hows:
        overall, outliers = comparison.wins(how, "overall"), comparison.wins(how, "outliers")
        told = ", ".join(f"{op_type(n)} {overall.get(n, 0)} / {outliers.get(n, 0)}" for n in functions)
        console.print(f"  {TITLES[how]}: {told}", highlight=False)
    for warning in comparison.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", emoji=False)

"""Flips by widths that no store has yet: no bits (a mean), three levels, learned step sizes.

Each site of hidden features (a layer in one degree bucket) and of attention is quantized alone,
everything else stays float32, and the model is finetuned as in a trial. A cell is the share of
predictions outside training that change, in percent, mean over the trainings; ``32`` is the
finetuning alone. ``mean`` replaces the values by one number, ``column means`` by one for each
column, ``ternary`` has three levels of least squared error, and ``1 learned`` and ``2 learned``
train scale and zero point with the weights. The last lines count the sites where a width takes
fewer bytes than a plain one without more flips. Only validation nodes choose epochs; the test
labels are not read.

    python benchmarks/widths.py --root FOLDER [--only gcn/Cora agnn/CiteSeer] [--seeds 3] [--quick]

References:
    Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, section 2.
    Li et al., "Ternary Weight Networks", 2016, arXiv:1605.04711, for three levels.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from statistics import fmean, stdev

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.attachment.quantized_model import site_quantizers
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets, quantile_degree_edges
from sgquant_optuna.graph.degree_edges import DEFAULT_NUM_BUCKETS
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import FINETUNING, paper_training
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.input_stores import RANGE_BYTES
from sgquant_optuna.quantization.memory import SiteSize, site_store
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.ranges import estimate_ranges
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site

PAIRS = ("gcn/Cora", "agnn/CiteSeer", "gat/Cora", "gcn/PubMed")
PLAIN = (1, 2, 3)
TERNARY = math.log2(3)
CODES_A_BYTE = 5  # 3**5 = 243 <= 256
COMPARED = (
    ("mean", "1"),
    ("column means", "1"),
    ("ternary", "2"),
    ("1 learned", "2"),
    ("2 learned", "3"),
)
EQUAL_BYTES = (("1 learned", "1"), ("2 learned", "2"))


class OneBucket(nn.Module):
    """Stands for a quantizer: applies a function to the rows of one degree bucket.

    Args:
        plain:
            Quantizer that it replaces.
        bucket:
            Bucket whose rows change; ``None`` for all rows.
        change:
            Maps values ``[N, F]`` to what a store would give back.
    """

    is_identity = False

    def __init__(self, plain: FeatureQuantizer, bucket: int | None, change: nn.Module) -> None:
        super().__init__()
        self.name, self.num_buckets = plain.name, plain.num_buckets
        self.bit_widths, self.bucket, self.change = plain.bit_widths, bucket, change

    def forward(self, x: Tensor, bucket: Tensor | None = None) -> Tensor:
        changed: Tensor = self.change(x)
        if self.bucket is None or bucket is None:
            return changed
        return torch.where((bucket == self.bucket)[:, None], changed, x)


class Constant(nn.Module):
    """Replaces values by constants; the gradient passes straight through, as by the quantizers."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.values - x).detach()


class Levels(nn.Module):
    """Rounds to the levels of a fixed range."""

    def __init__(self, scale: Tensor, zero_point: Tensor, width: float) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point
        self.width = torch.tensor(width)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.scale, self.zero_point, self.width)


class Learned(nn.Module):
    """Rounds to levels whose scale and zero point are trained (Esser et al., equations 1 to 3).

    The scale is learned as a factor ``exp(p)``, because Adam's steps do not know its unit. Their
    scaling of its gradient (section 2.2) is left out: Adam divides it away.
    """

    def __init__(self, scale: Tensor, zero_point: Tensor, width: int) -> None:
        super().__init__()
        self.first_scale, self.first_zero_point = scale, zero_point
        self.largest = 2**width - 1
        self.factor = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.first_scale * self.factor.exp()
        zero_point = self.first_zero_point + self.first_scale * self.shift
        steps = ((x - zero_point) / scale).clamp(0, self.largest)
        return (steps + (steps.round() - steps).detach()) * scale + zero_point


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="GCN on digits alone, one training")
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each pair")
    parser.add_argument("--only", nargs="+", default=PAIRS, metavar="MODEL/DATASET")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)
    pairs, seeds = (["gcn/digits"], 1) if options.quick else (options.only, options.seeds)
    for pair in pairs:
        flips, nbytes = measure(pair, options.root, seeds)
        print_table(pair, flips, nbytes)
        sys.stdout.flush()


Flips = Mapping[Site, Mapping[str, list[float]]]


def measure(pair: str, root: str | None, seeds: int) -> tuple[Flips, dict[Site, dict[str, int]]]:
    """Return the flips of each training, and the bytes, by site and width."""
    name, dataset = pair.split("/")
    chosen = paper_training(name, dataset)
    data = load_graph(dataset, root, normalize_features=chosen.normalize_features)
    data = AddDegreeBuckets(quantile_degree_edges(data, DEFAULT_NUM_BUCKETS))(data)
    graph, outside = FixedGraph(data), ~data.train_mask
    flips: dict[Site, dict[str, list[float]]] = {}
    nbytes: dict[Site, dict[str, int]] = {}
    for seed in range(seeds):
        model = make_model(name, data.num_features, int(data.y.max()) + 1, seed=seed)
        fit(model, graph, chosen.training, seed=seed)
        calibrated = CalibratedModel(
            model,
            graph,
            candidates=PLAIN,
            quantizer=QuantizerConfig(),
            num_buckets=int(data.degree_bucket.max()) + 1,
            layers=None,
            attention=None,
            forward=forward,
        )
        trial = Trial(calibrated, seed)
        before = trial.classes(trial.plain(None, FULL_PRECISION), finetune=False)
        for site, size in calibrated.layout.sizes.items():
            if size.content is not None:
                continue  # the graph's own features
            nbytes[site] = bytes_of(site, size)
            of_site = flips.setdefault(site, {width: [] for width in nbytes[site]})
            for width, made in trial.models(site).items():
                changed = trial.classes(made(), finetune=True) != before
                of_site[width].append(100 * float(changed[outside].double().mean()))
    return flips, nbytes


class Trial:
    """Models with one quantized site, of one training.

    Args:
        calibrated:
            Full-precision model with ranges.
        seed:
            Seed of the finetunings.
    """

    def __init__(self, calibrated: CalibratedModel, seed: int) -> None:
        self._calibrated, self._seed = calibrated, seed
        self._values = self._observed()

    def models(self, site: Site) -> dict[str, Callable[[], nn.Module]]:
        """Return a function that makes the model of each width, by its name in the table."""
        values = self._values[site]
        makers: dict[str, Callable[[], nn.Module]] = {
            "32": lambda: self.plain(None, FULL_PRECISION),
            "mean": lambda: self._with(site, lambda _: Constant(values.mean())),
            "column means": lambda: self._with(site, lambda _: Constant(values.mean(dim=0))),
            "ternary": lambda: self._with(site, lambda _: ternary(values)),
        }
        for width in PLAIN:
            makers[str(width)] = lambda width=width: self.plain(site, width)
        for width in (1, 2):
            makers[f"{width} learned"] = lambda width=width: self._with(
                site, lambda plain: learned(plain, site, width), width
            )
        return makers

    def plain(self, site: Site | None, width: int) -> nn.Module:
        """Return a model whose one site has a width, all others 32 bits."""
        sites = self._calibrated.layout.sizes
        bits = {one: width if one == site else FULL_PRECISION for one in sites}
        return self._calibrated.quantized(BitWidths(bits))

    def classes(self, model: nn.Module, *, finetune: bool) -> Tensor:
        """Return the class that each node gets, ``[N]`` int64, after a finetuning if asked."""
        if finetune:
            fit(model, self._calibrated.graph, FINETUNING, seed=self._seed)
        return self._calibrated.scores(model).argmax(dim=1)

    def _with(
        self, site: Site, change: Callable[[FeatureQuantizer], nn.Module], width: int = 1
    ) -> nn.Module:
        model = self.plain(site, width)
        for name, module in [*site_quantizers(model)]:
            if name == f"{site.layer}/{site.component}":
                made = OneBucket(module.quantizer, site.bucket, change(module.quantizer))
                module.add_module("quantizer", made)
        return model

    def _observed(self) -> dict[Site, Tensor]:
        """Return the values of each site in the full-precision model, ``[N, F]``."""
        model, seen = self.plain(None, FULL_PRECISION), {}
        for name, module in site_quantizers(model):
            module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        self._calibrated.scores(model)
        bucket = self._calibrated.graph.data.degree_bucket
        values = {}
        for site, size in self._calibrated.layout.sizes.items():
            if size.content is None:
                found = seen[f"{site.layer}/{site.component}"]
                values[site] = found if site.bucket is None else found[bucket == site.bucket]
        return values


def ternary(values: Tensor) -> Levels:
    """Return three levels of least squared error."""
    # A width of log2(3) has the codes 0, 1 and 2.
    lower, upper = estimate_ranges(values, None, 1, (TERNARY,), QuantizerConfig())  # type: ignore[arg-type]
    width = torch.tensor(TERNARY, dtype=lower.dtype)
    return Levels(*affine_parameters(lower, upper, width), TERNARY)


def learned(plain: FeatureQuantizer, site: Site, width: int) -> Learned:
    """Return levels that begin as those of a plain quantizer and are trained."""
    table, row = plain.table(), site.bucket or 0
    return Learned(copy.copy(table.scale[row]), copy.copy(table.zero_point[row]), width)


def bytes_of(site: Site, size: SiteSize) -> dict[str, int]:
    """Return the bytes of a site at each width of the table."""
    plain = {str(width): site_store(site, size, width)[1] for width in (*PLAIN, FULL_PRECISION)}
    row = math.ceil(size.num_columns / CODES_A_BYTE)
    codes = size.num_rows * row
    if site.component == "attention":
        codes = math.ceil(size.num_elements / CODES_A_BYTE)
    return {
        "32": plain["32"],
        "mean": 4,
        "column means": 4 * size.num_columns,
        "1": plain["1"],
        "1 learned": plain["1"],
        "ternary": codes + RANGE_BYTES,
        "2": plain["2"],
        "2 learned": plain["2"],
        "3": plain["3"],
    }


def print_table(pair: str, flips: Flips, nbytes: dict[Site, dict[str, int]]) -> None:
    widths = list(next(iter(nbytes.values())))
    table = Table(box=box.MARKDOWN, title=f"{pair}: flips in percent")
    for column in ("site", *widths):
        table.add_column(column, justify="left" if column == "site" else "right")
    for site, of_site in flips.items():
        table.add_row(str(site), *(f"{fmean(of_site[width]):.2f}" for width in widths))
    console = Console(width=150)
    console.print(table)
    for new, old in COMPARED:
        won = [s for s in flips if fmean(flips[s][new]) <= fmean(flips[s][old])]
        won = [site for site in won if nbytes[site][new] < nbytes[site][old]]
        saved = sum(nbytes[site][old] - nbytes[site][new] for site in won)
        total = sum(nbytes[site][old] for site in flips)
        console.print(
            f"{new} instead of {old}: no more flips and fewer bytes at {len(won)} of {len(flips)} "
            f"sites, {saved:,} of {total:,} bytes saved; {difference(flips, new, old)}"
        )
    for new, old in EQUAL_BYTES:
        console.print(f"{new} against {old}, at equal bytes: {difference(flips, new, old)}")


def difference(flips: Flips, new: str, old: str) -> str:
    """Say by how much flips differ: mean over the sites, deviation over the trainings."""
    by_training = [
        fmean(a - b for a, b in pairs)
        for pairs in zip(
            *([*zip(one[new], one[old], strict=True)] for one in flips.values()), strict=True
        )
    ]
    spread = f" ± {stdev(by_training):.2f}" if len(by_training) > 1 else ""
    return f"flips {fmean(by_training):+.2f}{spread}"


if __name__ == "__main__":
    main()

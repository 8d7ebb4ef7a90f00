"""Figure 1: the memory of features against that of weights, for every model and data set."""

from __future__ import annotations

from pairs import arguments, pairs
from rich.console import Console
from rich.table import Table

import sgquant_optuna as sgq

MB = 1e6


def main() -> None:
    """Count the float32 bytes of features, attention and weights; nothing is trained."""
    options = arguments(__doc__)
    table = Table("model", "data set", "features, MB", "attention, MB", "weights, MB", "features")
    for pair in pairs(options):
        classes = int(pair.data.y.max()) + 1
        model = sgq.make_model(pair.model, pair.data.num_features, classes, seed=0)
        weights = 4 * sum(weight.numel() for weight in model.parameters())
        layout = sgq.calibrate(sgq.attach(model), pair.data, candidates=(8,))
        by_component = {"embedding": 0, "attention": 0}
        for site, size in layout.sizes.items():
            by_component[site.component] += 4 * size.num_elements
        features = sum(by_component.values())
        table.add_row(
            pair.model,
            pair.dataset,
            f"{by_component['embedding'] / MB:.2f}",
            f"{by_component['attention'] / MB:.2f}",
            f"{weights / MB:.3f}",
            f"{features / (features + weights):.2%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

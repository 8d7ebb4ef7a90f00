"""Figure 7: error against memory for each granularity, and for all of them together."""

from __future__ import annotations

import argparse

from pairs import Pair, arguments, is_done, measure, pairs

import sgquant_optuna as sgq

SINGLE = ("uniform", "lwq", "cwq", "taq")
ALL = "lwq+cwq+taq"
MARK = "studies:front"


def main() -> None:
    """Search memory against drop by each granularity, then by all from what these found."""
    options = arguments(__doc__, only=["gat/Cora"], n_trials=(4, 60), seeds=(2, 10))
    for pair in pairs(options):
        fronts: list[sgq.BitWidths] = []
        for granularity in (*SINGLE, ALL):
            fronts += front(pair, granularity, fronts, options)


def front(
    pair: Pair, granularity: str, known: list[sgq.BitWidths], options: argparse.Namespace
) -> list[sgq.BitWidths]:
    """Return the assignments that nothing in the study of a granularity dominates."""
    name = f"figure7-{pair.model}-{pair.dataset}-{granularity}"
    done = is_done(name, options.storage, MARK)
    objective = pair.objective(options.models, mode="pareto", granularity=granularity)
    study = sgq.create_study(objective, storage=options.storage, study_name=name, seed=0)
    if not done:
        known = known if granularity == ALL else []
        for bits in known:  # what is found already is measured beside the trials of all together
            params = objective.search_space.params_of(by_bucket(bits, objective.layout))
            study.enqueue_trial(params, skip_if_exists=True)
        measure(study, objective, options.n_trials + len(known))
    results = {one.number: sgq.TrialResult.of(one.user_attrs) for one in study.best_trials}
    found = {f"trial {number}": one.bit_widths for number, one in results.items() if one}
    sgq.final_report(
        study, objective, pair.data, seeds=options.seeds, retrain=pair.trained, baselines=found
    )
    study.set_user_attr(MARK, list(found))
    print(sgq.report(study), end="\n\n")
    return list(found.values())


def by_bucket(bits: sgq.BitWidths, layout: sgq.FeatureLayout) -> sgq.BitWidths:
    """Return the same widths with one for each degree bucket."""
    whole = {(site.layer, site.component): width for site, width in bits.items()}
    return sgq.BitWidths({s: bits.get(s, whole[s.layer, s.component]) for s in layout.sizes})


if __name__ == "__main__":
    main()

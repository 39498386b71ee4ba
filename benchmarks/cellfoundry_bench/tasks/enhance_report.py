"""The report of the read-depth enhancement: errors by depth, clusters by fold, and where the model loses."""

from __future__ import annotations

from cellfoundry_bench.tasks import enhance_figures as figures
from cellfoundry_bench.tasks.enhance_facts import facts
from cellfoundry_bench.tasks.page import Section, page
from cellfoundry_bench.umap_figure import umap_panels
from cellfoundry_serving.umap_layout import umap_coordinates
from cellfoundry_tasks.enhance.cluster_level import MODEL_EXPRESSION, ClusterLevel
from cellfoundry_tasks.enhance.clustering import CLUSTER_SCORES
from cellfoundry_tasks.enhance.gene_errors import SCORES
from cellfoundry_tasks.enhance.gene_level import (
    KNN,
    MAGIC,
    MEANS,
    MODEL,
    ONE,
    RAW,
    SCVI,
    TWIN,
    smoothing_name,
)
from cellfoundry_tasks.enhance.run import Enhanced
from cellfoundry_tasks.enhance.smoothing import K_GRID, LOG_OF_MEAN, MEAN_OF_LOGS
from cellfoundry_tasks.enhance.tally import Score, Tally, difference
from cellfoundry_tasks.intervals import Interval

PLOTTED = ("mae", "mre", "pcc", "mae_one", "mae_all", "mae_all_half", "rmse_all", "pcc_all", "pcc_gene")
VOTES = (MEAN_OF_LOGS, LOG_OF_MEAN)
QUESTION = (
    "Cells of full depth lose all but a share of their molecules at random. What does the model say of them when it is "
    "asked for their full depth, and do they fall into their clusters again?"
)

SCORES_TEXT = (
    "x is the truth and y the prediction, log1p of counts per 10,000. Expressed genes of a cell are those with x > 0, "
    "which the published experiment judges alone. MAE is the mean of |y - x|, MRE the mean of |y - x| / x, PCC "
    "Pearson's correlation over the genes of a cell; each is averaged over cells. A prediction that is too high where "
    "nothing is expressed costs nothing among expressed genes, so one molecule of every gene, which knows nothing of "
    "the cell, is hard to beat there: read them beside all genes. Of a gene that most cells lack, the mean is the best "
    "guess by squares, and 0 by absolute errors; so two more scores give everyone's predictions what follows from the "
    "full depth: at least one molecule of an expressed gene, and none where y is below half a molecule. Bars: 95 % "
    "over cells. Random weights and one molecule may leave the plots; the tables have them."
)
CLUSTERS_TEXT = (
    "NMI and ARI: agreement with the reference. Silhouette, Calinski-Harabasz and Davies-Bouldin (lower is better): "
    "the found clusters among the principal components of the full-depth cells (counts per 10,000, log1p, highly "
    "variable genes, unit variance). Expression, smoothed and raw, is clustered by 50 principal components; full depth "
    "by the reference's own. Random weights, the model's expression and scVI are of the first thinning; intervals "
    "(95 %) are over thinnings."
)
PUBLISHED_TEXT = (
    "It is no reproduction. The published experiment enhanced 10,000 cells of its own validation set, and clustered "
    "Baron's pancreas cells, with weights of 100 million parameters trained on 50 million cells; it judged expressed "
    "genes alone, against SAVER, scImpute, scVI and MAGIC. Here are the cells and weights named below, kNN smoothing "
    "and trivial answers beside them, all genes beside the expressed ones, and random weights as a control. SAVER and "
    "scImpute, which are R packages, are not run."
)


def report(result: Enhanced, command: str = "") -> str:
    """The page's text, which needs nothing from outside."""
    return page(
        "Read-depth enhancement",
        QUESTION,
        _tiles(result),
        [
            _verdict(result),
            _by_depth(result),
            *_tables(result),
            _clusters(result),
            _panels(result),
            Section("How this differs from the published experiment", PUBLISHED_TEXT),
        ],
        facts(result, command),
    )


def _tiles(result: Enhanced) -> list[tuple[str, str]]:
    depth = result.judged_depth
    methods, at = result.gene_level.methods(depth), f"at {100 * depth:g} % depth"
    tiles = [(_mean(methods[MODEL], "mae"), f"MAE of expressed genes {at}: the model")]
    for best, tally in _best_of_votes(result, depth, "mae"):
        tiles.append((_mean(tally, "mae"), f"the same: {best}, the best k for it"))
    tiles.append((_mean(methods[ONE], "mae"), "the same: one molecule of each gene, whatever the cell"))
    _, smoothed = min(
        _best_of_votes(result, depth, "rmse_all"), key=lambda found: found[1].scores()["rmse_all"].mean
    )
    tiles += [
        (_mean(methods[MODEL], "rmse_all"), f"RMSE of all genes {at}: the model"),
        (_mean(smoothed, "rmse_all"), "the same: kNN smoothing at its best"),
    ]
    return tiles


def _best_of_votes(result: Enhanced, depth: float, key: str) -> list[tuple[str, Tally]]:
    """kNN smoothing at its best by either mean."""
    found = (result.gene_level.best_smoothing(depth, key, vote) for vote in VOTES)
    return [best for best in found if best]


def _verdict(result: Enhanced) -> Section:
    """The model against kNN smoothing, score by score, at the judged depth."""
    depth = result.judged_depth
    model = result.gene_level.methods(depth)[MODEL]
    scores = model.scores()
    rows = []
    lost: list[str] = []
    won = compared = 0
    for key, name in SCORES.items():
        if key not in scores or scores[key].over_cells is None:
            continue
        row = [name, _with_intervals(scores[key])]
        for vote in VOTES:
            best = result.gene_level.best_smoothing(depth, key, vote)
            found = difference(model, best[1], key) if best else None
            if best is None or found is None:
                row += [_mean(best[1], key) if best else "not defined", ""]
                continue
            method, tally = best
            says = _says(found, key)
            row += [
                f"{_mean(tally, key)} (k={method.partition('k=')[2]})",
                f"{_interval(found, sign=True)}, {says}",
            ]
            compared += 1
            won += says == "better"
            if says == "worse":
                lost.append(f"{name} ({vote})")
        rows.append(row)
    text = (
        f"Means over {result.judged:,} cells, with half of the 95 % interval over cells and, after the slash, over "
        f"thinnings. The k of kNN smoothing is the best of {', '.join(map(str, K_GRID))} for each score, chosen on the "
        "judged cells themselves, which the model is not granted. The difference is the model less kNN smoothing, cell "
        "by cell; its interval says how sure it is. "
        f"The model wins {won} of {compared} comparisons and loses {len(lost)}: {'; '.join(lost) or 'none'}."
    )
    columns = ["Score", "Model", "kNN, mean of logs", "difference", "kNN, log of mean", "difference"]
    return Section(
        f"The model against kNN smoothing at {100 * depth:g} % depth", text, columns=columns, rows=rows
    )


def _by_depth(result: Enhanced) -> Section:
    names = [MODEL, *map(smoothing_name, VOTES), MAGIC, SCVI, RAW, MEANS, ONE, TWIN]
    lines: dict[str, dict[str, list[tuple[float, Interval]]]] = {key: {} for key in PLOTTED}
    shown = []
    for depth in sorted(result.config.depths):
        methods = result.gene_level.methods(depth)
        for name in names:
            for key in PLOTTED:
                tally = methods.get(name)
                if name.startswith(KNN):
                    best = result.gene_level.best_smoothing(depth, key, name.removeprefix(f"{KNN}, "))
                    tally = best[1] if best else None
                score = tally.scores().get(key) if tally else None
                if score:
                    lines[key].setdefault(name, []).append((depth, score.over_cells or score.over_seeds))
                    shown.append(name)
    charts = [figures.by_depth(lines[key], SCORES[key]) for key in PLOTTED if lines[key]]
    return Section(
        "Errors against depth",
        SCORES_TEXT,
        svgs=[*charts, figures.legend([name for name in names if name in shown])],
    )


def _tables(result: Enhanced) -> list[Section]:
    sections = []
    for depth in sorted(result.config.depths):
        methods = result.gene_level.methods(depth)
        empty = [result.gene_level.empty[depth, seed] for seed in range(result.config.seeds)]
        rows = [[name, *_score_cells(tally)] for name, tally in methods.items()]
        text = (
            "Means; the plots above show how sure they are, and result.json has their intervals over cells and over "
            f"thinnings. Cells of each thinning left out since nothing was left of them: {', '.join(map(str, empty))}."
        )
        strong = frozenset(place for place, name in enumerate(methods) if name == MODEL)
        columns = ["Method", *(SCORES[key] for key in PLOTTED)]
        sections.append(Section(f"All methods at {100 * depth:g} % depth", text, (), columns, rows, strong))
    return sections


def _score_cells(tally: Tally) -> list[str]:
    scores = tally.scores()
    return [f"{scores[key].mean:.3f}" if key in scores else "" for key in PLOTTED]


def _clusters(result: Enhanced) -> Section:
    level = result.cluster_level
    found = {place: level.scores(*place) for place in level.values}
    charts = []
    names: list[str] = []
    for key, title in CLUSTER_SCORES.items():
        lines: dict[str, list[tuple[float, Interval]]] = {}
        levels: dict[str, float] = {}
        for (method, fold), scores in found.items():
            if key not in scores:
                continue
            if fold is None:
                levels[method] = scores[key].mean
            else:
                lines.setdefault(method, []).append((fold, scores[key]))
        charts.append(figures.by_fold(lines, levels, title))
        names += [name for name in (*lines, *levels) if name not in names]
    rows = [
        [
            f"{method}, T/S {fold:g}" if fold is not None else method,
            *(_interval(scores[key]) if key in scores else "" for key in CLUSTER_SCORES),
            ", ".join(str(number.found) for number in level.numbers[method, fold]),
        ]
        for (method, fold), scores in found.items()
    ]
    strong = frozenset(
        place for place, (method, _) in enumerate(found) if method in (MODEL, MODEL_EXPRESSION)
    )
    text = (
        f"{level.cells:,} cells thinned to {100 * level.depth:g} %, each representation clustered by Leiden with the "
        f"resolution that gives {level.reference_clusters} clusters, as the reference has: "
        f"{level.origin}. {_missed(level)} {CLUSTERS_TEXT}"
    )
    columns = ["Representation", *CLUSTER_SCORES.values(), "Clusters of each thinning"]
    return Section(
        "Clusters of enhanced cells", text, [*charts, figures.legend(names)], columns, rows, strong
    )


def _missed(level: ClusterLevel) -> str:
    """How many clusterings have another number of clusters than the reference."""
    numbers = [number for of_place in level.numbers.values() for number in of_place]
    missed = sum(number.found != number.wanted for number in numbers)
    if not missed:
        return f"All {len(numbers)} clusterings have that number."
    return (
        f"{missed} of {len(numbers)} clusterings have another number, the nearest that a resolution gave: their scores "
        "are not of like with like."
    )


def _panels(result: Enhanced) -> Section:
    level = result.cluster_level
    places = {panel.name: umap_coordinates(panel.features) for panel in level.panels}
    return Section(
        "Where the cells lie",
        f"UMAP of the first thinning, coloured by {level.origin}; the model at the fold that leads back to the full "
        "depth. Distances in a UMAP say little; the table above measures.",
        svgs=[umap_panels(places, level.panel_labels, "cluster")],
    )


def _says(found: Interval, key: str) -> str:
    """Of the model less another: better, worse, or no clear difference."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return "no clear difference"
    higher = found.low > 0
    return "better" if higher == key.startswith("pcc") else "worse"


def _mean(tally: Tally, key: str) -> str:
    return f"{tally.scores()[key].mean:.3f}"


def _with_intervals(score: Score) -> str:
    halves = [_half(found) for found in (score.over_cells, score.over_seeds) if found]
    return f"{score.mean:.3f} ±{'/'.join(half for half in halves if half)}".rstrip(" ±")


def _half(found: Interval) -> str:
    return f"{(found.high - found.low) / 2:.3f}" if found.low is not None and found.high is not None else ""


def _interval(found: Interval, *, sign: bool = False) -> str:
    half = _half(found)
    text = f"{found.mean:+.3f}" if sign else f"{found.mean:.3f}"
    return f"{text} ±{half}" if half else text

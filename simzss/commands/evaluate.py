"""`simzss eval`: a model on a benchmark or on all of them, to `results.json`, a table and a page."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from simzss.atomic import atomic_write
from simzss.data.settings import (
    AnyBenchmark,
    BenchmarkSettings,
    BenchmarksSettings,
    ClassificationSettings,
    RetrievalSettings,
)
from simzss.errors import printable
from simzss.program import interruptible
from simzss.segmentation.settings import SegmentationSettings

if TYPE_CHECKING:
    from simzss.data.benchmark import Benchmark
    from simzss.errors import InputError
    from simzss.evaluation.ledger import Ledger
    from simzss.models.simzss import SimZSS
    from simzss.reports.charts import Curve
    from simzss.reports.report import Report
    from simzss.segmentation.segmenter import Segmenter

log = logging.getLogger(__name__)

EXTREMES = 4  # worst and best photos in a report that shows any
CONFUSIONS = 10  # largest confusions of a benchmark


class EvalSettings(SegmentationSettings):
    """Measure a model on a benchmark."""

    benchmark: AnyBenchmark
    """what is measured"""
    output_dir: Path = Path("outputs/eval")
    """gets results.json, results.md, report.html and counts/"""
    save_masks: bool = False
    """write each predicted index mask to output_dir/masks/NAME.png"""
    compare_untrained: bool = False
    """measure the same model before training too, as NAME_untrained"""
    engineered: bool = True
    """measure with the benchmark's engineered class names too"""
    overlays: Annotated[int, Field(ge=0)] = 10
    """photos drawn into the report, beside the worst and the best; 0 for none"""
    num_workers: Annotated[int, Field(ge=0)] | None = None
    """processes that decode and resize; null: one for every four cores"""


def run(settings: EvalSettings) -> dict[str, dict[str, Any]]:
    """Evaluate in this process or in those that torchrun or srun started, and write the reports.

    Returns:
        Results by name, as `results.json` has them.

    Raises:
        InputError: anything wrong with the model or the benchmark.
    """
    from simzss.data.benchmark import Benchmark
    from simzss.distributed import process_group, raise_on_all_ranks, rank
    from simzss.evaluation.classification import classify
    from simzss.evaluation.ledger import HINT, hold_output
    from simzss.evaluation.retrieval import retrieve
    from simzss.evaluation.segmentation import decoding_processes
    from simzss.models.build import build_untrained
    from simzss.reports.published import load_published
    from simzss.reports.report import Report
    from simzss.segmentation.build import build_segmenter, load_configured, load_configured_sam

    workers = decoding_processes(settings.num_workers)
    report = Report(title="Zero-shot segmentation", published=load_published())
    with process_group(), interruptible(HINT), hold_output(settings.output_dir) as ledger:
        ledger.announce("results.json")
        with raise_on_all_ranks():
            tasks = _open(settings.benchmark)
            model = load_configured(settings)
            sam = load_configured_sam(settings)
            untrained = build_untrained(model) if settings.compare_untrained else None
        for name, task in tasks.items():
            if isinstance(task, Benchmark):
                segmenters = [
                    build_segmenter(settings, one, sam, task.settings) for one in (model, untrained) if one is not None
                ]
                _segment(settings, report, task, segmenters, workers, ledger)
            elif isinstance(task, RetrievalSettings):
                found = retrieve(model, task, settings.precision, num_workers=workers, ledger=ledger)
                report.results[name] = found.plain()
            elif isinstance(task, ClassificationSettings):
                report.results[name] = classify(
                    model, task, settings.text_pooling, settings.precision, num_workers=workers, ledger=ledger
                ).plain()
            else:
                log.warning("%s: not measured: %s", printable(name), printable(str(task)))
                report.results[name] = {"missing": str(task)}
        if rank() == 0:
            _write(settings, report, model)
            ledger.clear()
    return report.results


def _open(
    benchmark: AnyBenchmark,
) -> dict[str, Benchmark | RetrievalSettings | ClassificationSettings | InputError]:
    """Return the tasks by name; an error in place of a set of a collection that is not at hand."""
    from simzss.data.benchmark import Benchmark, open_benchmarks

    if isinstance(benchmark, BenchmarksSettings):
        return {**open_benchmarks(benchmark)}
    return {benchmark.name: Benchmark(benchmark) if isinstance(benchmark, BenchmarkSettings) else benchmark}


def _segment(
    settings: EvalSettings,
    report: Report,
    benchmark: Benchmark,
    segmenters: list[Segmenter],
    workers: int,
    ledger: Ledger,
) -> None:
    """Measure a segmentation set with the model, and with the untrained one if asked, and draw what came out."""
    from simzss.distributed import rank
    from simzss.evaluation.counts import counts_file, save_counts
    from simzss.evaluation.metrics import largest_confusions
    from simzss.evaluation.results import PLAIN
    from simzss.evaluation.segmentation import evaluate, mask_writer
    from simzss.reports.gallery import draw_gallery

    name, output = benchmark.settings.name, settings.output_dir
    log.info("%s: %d images", printable(name), len(benchmark))
    masks = output / "masks" / (name if isinstance(settings.benchmark, BenchmarksSettings) else "")
    visit = mask_writer(masks, benchmark.names, benchmark.num_labels) if settings.save_masks else None
    segmenter, *before = segmenters
    result = evaluate(segmenter, benchmark, visit, settings.engineered, workers, ledger)
    report.results[name] = result.plain()
    for one in before:
        report.results[f"{name}_untrained"] = evaluate(one, benchmark, num_workers=workers, ledger=ledger).plain()
        report.baselines[name] = f"{name}_untrained"
    if rank() != 0:
        return
    for names, column in result.by_names.items():
        save_counts(counts_file(output, name, names), column.counts)
    counts = result.by_names[PLAIN].counts
    report.confusions[name] = largest_confusions(counts.confusion, counts.classes, CONFUSIONS)
    if settings.overlays:
        gallery = draw_gallery(segmenter, benchmark, counts, settings.overlays, EXTREMES)
        report.overlays.extend(gallery.random)
        report.worst.extend(gallery.worst)
        report.best.extend(gallery.best)


def _write(settings: EvalSettings, report: Report, model: SimZSS) -> None:
    """Write results and reports."""
    from simzss.reports.markdown import write_markdown
    from simzss.reports.report import write_report

    text = json.dumps(report.results, indent=2, ensure_ascii=False) + "\n"
    atomic_write(settings.output_dir / "results.json", text.encode(errors="backslashreplace"))
    report.summary.extend([("model", settings.model), ("backbone", model.backbone.name)])
    report.notes.append("Scores are per cent, from one confusion matrix over all pixels of the benchmark.")
    report.curves.extend(_curves(Path(settings.model).parent / "metrics.csv"))
    write_report(settings.output_dir / "report.html", report)
    write_markdown(settings.output_dir / "results.md", report)


def _curves(path: Path) -> list[Curve]:
    """Return the curves of the training, none where its log is missing or strange."""
    from simzss.reports.charts import chart, curves_from_csv

    if not path.is_file():
        return []
    try:
        return [curve for curve in curves_from_csv(path) if chart(curve)]
    except Exception as error:  # whatever another program logs there must not cost what was measured
        log.warning("%s has no curves that can be drawn: %s", printable(str(path)), printable(str(error)))
        return []

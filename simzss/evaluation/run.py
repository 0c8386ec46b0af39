"""`simzss eval`: a model on a benchmark or on all of them, to `results.json`, a table and a page."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from simzss import config as conf
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.distributed import failing_together, process_group, rank
from simzss.errors import InputError
from simzss.evaluation.classification import ClassificationConfig, classify
from simzss.evaluation.confusion import Confusion
from simzss.evaluation.counts import counts_file, save_counts
from simzss.evaluation.retrieval import RetrievalConfig, retrieve
from simzss.evaluation.segmentation import PLAIN, decoding_processes, evaluate, mask_writer
from simzss.models.sam.sam import Sam
from simzss.models.simzss import SimZSS
from simzss.reports.gallery import draw_gallery
from simzss.reports.markdown import write_markdown
from simzss.reports.published import load_published
from simzss.reports.report import Report, curves_from_csv, write_report
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import build_segmenter, check_settings, load_configured, load_configured_sam
from simzss.training.run import build_model

log = logging.getLogger(__name__)

EXTREMES = 4  # worst and best photos in a report that shows any


def run_evaluation(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Evaluate as configured, in this process or in those that torchrun or srun started; returns the results.

    Writes `results.json`, `results.md`, `report.html` and `counts/` into the output folder.

    Raises:
        InputError: anything wrong with model, benchmark or configuration.
    """
    conf.require_complete(config)
    plain: dict[str, Any] = conf.to_plain(config)
    plain["num_workers"] = decoding_processes(plain["num_workers"])
    if plain["overlays"] < 0:
        raise InputError(f"overlays={plain['overlays']} must be at least 0")
    output = Path(plain["output_dir"])
    with process_group():
        with failing_together():
            benchmarks = list(_benchmarks(plain["benchmark"]))
            check_settings(plain)
            model, settings = load_configured(plain)
            sam = load_configured_sam(plain)
            output.mkdir(parents=True, exist_ok=True)
        run = _Run(plain, output, model, settings, sam)
        for name, task in benchmarks:
            if isinstance(task, Benchmark):
                run.segment(task)
            elif isinstance(task, RetrievalConfig):
                run.report.results[name] = retrieve(model, task, plain["precision"], num_workers=plain["num_workers"])
            elif isinstance(task, ClassificationConfig):
                run.report.results[name] = classify(
                    model, task, run.readout, plain["precision"], num_workers=plain["num_workers"]
                )
            else:
                log.warning("%s: not measured: %s", name, task)
                run.report.results[name] = {"missing": task}
        if rank() == 0:
            run.write()
    return run.report.results


_Task = Benchmark | RetrievalConfig | ClassificationConfig | str


def _benchmarks(options: Mapping[str, Any]) -> Iterator[tuple[str, _Task]]:
    """What to measure, by name; a text instead says why a set of `all` is not at hand.

    Raises:
        InputError: a set is not there, or none of all.
    """
    options = dict(options)
    task = options.pop("task", "segmentation")
    if task == "segmentation":
        yield options["name"], Benchmark(BenchmarkConfig(**options))
    elif task == "retrieval":
        yield options["name"], RetrievalConfig(**options)
    elif task == "classification":
        yield options["name"], ClassificationConfig(**options)
    else:
        yield from _all_benchmarks(options)


def _all_benchmarks(options: Mapping[str, Any]) -> Iterator[tuple[str, _Task]]:
    root = Path(options["root"])
    if not root.is_dir():
        raise InputError(f"benchmark.root={root} is no folder")
    found: list[tuple[str, _Task]] = []
    for name in options["sets"]:
        choice = conf.to_plain(conf.load_choice("benchmark", name)) | {"root": str(root), "limit": options["limit"]}
        if choice.pop("task", "segmentation") != "segmentation":
            raise InputError(f"benchmark.sets: {name} is no segmentation set")
        try:
            found.append((name, Benchmark(BenchmarkConfig(**choice))))
        except InputError as error:
            found.append((name, str(error)))
    if all(isinstance(task, str) for _, task in found):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found)
        raise InputError(f"benchmark.root={root} holds none of the sets ({reasons})")
    yield from found


@dataclass
class _Run:
    """One evaluation under way: its settings, its model, and the report that fills."""

    plain: dict[str, Any]
    output: Path
    model: SimZSS
    settings: dict[str, Any]
    sam: Sam | None
    report: Report = field(default_factory=lambda: Report(title="Zero-shot segmentation", published=load_published()))

    @property
    def readout(self) -> str:
        """How class names become vectors: as asked, else as the model was trained for."""
        return str(self.plain["readout"] or self.settings["readout"])

    def segment(self, benchmark: Benchmark) -> None:
        """Measure a segmentation set: scores, counts, masks and drawings."""
        name = benchmark.config.name
        log.info("%s: %d images", name, len(benchmark))
        segmenter = self._segmenter(self.model, benchmark)
        masks = self.output / "masks" if "sets" not in self.plain["benchmark"] else self.output / "masks" / name
        found = evaluate(
            segmenter,
            benchmark,
            mask_writer(masks, benchmark.num_labels) if self.plain["save_masks"] else None,
            engineered=bool(self.plain["engineered"]),
            num_workers=self.plain["num_workers"],
        )
        self.report.results[name] = found.result
        if self.plain["compare_untrained"]:
            before = self._segmenter(self._untrained(), benchmark)
            measured = evaluate(before, benchmark, num_workers=self.plain["num_workers"])
            self.report.results[f"{name}_untrained"] = measured.result
            self.report.baselines[name] = f"{name}_untrained"
        if rank() != 0:
            return
        for names, counts in found.counts.items():
            save_counts(counts_file(self.output, name, names), counts)
        plain = found.counts[PLAIN]
        self.report.confusions[name] = Confusion(plain.confusion, plain.classes)
        if self.plain["overlays"]:
            gallery = draw_gallery(segmenter, benchmark, plain, self.plain["overlays"], EXTREMES)
            self.report.overlays.extend(gallery.random)
            self.report.worst.extend(gallery.worst)
            self.report.best.extend(gallery.best)

    def write(self) -> None:
        """Write results and reports."""
        text = json.dumps(self.report.results, indent=2, ensure_ascii=False)
        (self.output / "results.json").write_text(text + "\n", encoding="utf-8")
        curves = Path(self.plain["model"]).parent / "metrics.csv"
        report = replace(
            self.report,
            summary=[("model", str(self.plain["model"])), ("backbone", self.model.backbone.name)],
            curves=curves_from_csv(curves) if curves.is_file() else [],
            notes=["Scores are per cent, from one confusion matrix over all pixels of the benchmark."],
        )
        write_report(self.output / "report.html", report)
        write_markdown(self.output / "results.md", report)

    def _segmenter(self, model: SimZSS, benchmark: Benchmark) -> Segmenter:
        return build_segmenter(self.plain, model, self.readout, self.sam, benchmark.config)

    def _untrained(self) -> SimZSS:
        """The same model before training, with the feature statistics of the trained one."""
        before = self.settings["untrained"]
        # The backbone that was just measured, wherever it lies now, not where it lay at training.
        file = self.model.backbone.weights_file
        weights = str(file) if file else before["backbone"]["weights"]
        now = {"weights": weights, "features": self.model.backbone.features, "proxy": self.model.backbone.proxy}
        untrained = build_model(before["backbone"] | now, before["text"], before["seed"])
        untrained.feature_norm.load_state_dict(self.model.feature_norm.state_dict())
        return untrained

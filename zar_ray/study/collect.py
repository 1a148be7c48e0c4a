"""What a study found, from its one result table: a cell's numbers are those of an evaluation of it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zar_ray.data.datasets import known_benchmarks, load_benchmark, protocol_name
from zar_ray.evaluation.pipeline import Evaluated
from zar_ray.evaluation.planning import varied_options
from zar_ray.evaluation.streams import orders_for, stream_methods
from zar_ray.reporting.figures import confusion_picture
from zar_ray.reporting.summary_tables import per_class_csv
from zar_ray.results import metrics
from zar_ray.results.averages import protocol_averages
from zar_ray.results.case_rows import CASE_COLUMNS, CLASS_COLUMNS, CaseRows, class_accuracies, confusion_matrix
from zar_ray.results.folder import SUMMARY, RunFolder
from zar_ray.results.record import CaseMetrics, RunSummary, SplitSummary, Throughput
from zar_ray.results.shift import shift_table
from zar_ray.results.stored_rows import PREDICTIONS
from zar_ray.results.study_record import Cell, StudyRecord, label_of
from zar_ray.study.axes import plain_name
from zar_ray.study.options import EvalConfig
from zar_ray.study.plan import Study, reference_method
from zar_ray.study.tables import rows_of, tables_of


def collect(study: Study, evaluated: Evaluated) -> StudyRecord:
    """All numbers of a study, from its whole result table."""
    axes, names = study.axes, study.axes.names
    own = evaluated.models[0].settings[0].options
    cells, parts = [], []
    for number, model in enumerate(axes.models):
        for place, setting in enumerate(axes.settings):
            part = evaluated.cell(number, place)
            options = part.models[0].settings[0].options
            assert isinstance(options, EvalConfig)
            coordinates = {**model.coordinates, **setting.coordinates}
            cells.append(
                Cell(
                    coordinates={axis: coordinates[axis] for axis in names},
                    varied=varied_options(own, options),
                    config=options.model_dump(mode="json"),
                    summary=_summary(study, options, part),
                )
            )
            parts.append(part)
    sides = {one.options.views.short_side for one in evaluated.models[0].settings}
    raised = sides != {one.options.views.short_side for one in axes.settings}
    tables, reference = tables_of(study, cells, parts), reference_method(study.options)
    shifts = (shift_table(one, reference) for one in tables)
    settings = [one.options for model in evaluated.models for one in model.settings]
    return StudyRecord(
        whole=replace(
            cells[0].summary,
            name=str(study.options.name),
            order_dependent=stream_methods(settings),
            order=tuple(map(str, orders_for(settings))),
            **_counts(evaluated),
        ),
        axes=names,
        cells=tuple(cells),
        tables=tables,
        shifts=tuple(one for one in shifts if one is not None),
        short_side=own.views.short_side if raised else None,
        seconds=evaluated.seconds,
    )


def _summary(study: Study, options: EvalConfig, part: Evaluated) -> RunSummary:
    """All numbers of one cell, from its part of the result table."""
    workload, folder, (model,) = study.workload, study.folder, part.models
    dataset = protocol_name(str(options.dataset), options.protocol)
    average = load_benchmark(dataset).average if dataset in known_benchmarks() else "mean"
    splits = {split.name: split for split in workload.splits}
    cases = tuple(
        metrics.case_metrics(
            rows_of(workload, split, part, case.case_id, metrics.columns_of_case(split.multi_label)),
            case.case_id,
            case.method,
            len(split.class_names),
            multi_label=split.multi_label,
            split=split.name,
            seed=options.seed,
        )
        for split in workload.splits
        for case in workload.cases_of(split, part.cases)
    )

    def of_case(case: CaseMetrics) -> CaseRows:
        table = rows_of(workload, splits[case.split], part, case.case_id, CASE_COLUMNS)
        return CaseRows.of(table, case.case_id, case.classes)

    return RunSummary(
        name=str(options.name),
        dataset=dataset,
        split=options.split,
        model=model.name,
        model_fingerprint=model.fingerprint,
        random_weights=model.random_weights,
        seed=options.seed,
        classes=len({name for names in workload.class_sets for name in names}),
        **_counts(part),
        resumed=part.resumed,
        cases=cases,
        costs=metrics.costs(part.rows.read(metrics.COST_COLUMNS)),
        throughput=Throughput.of(part.evaluated, part.seconds, part.loads),
        results=folder.storage.path(PREDICTIONS),
        run_file=folder.storage.path(SUMMARY),
        splits=tuple(
            SplitSummary(split.name, len(split.class_names), len(split), split.notes) for split in workload.splits
        ),
        averages=protocol_averages(cases, average, of_case, options.seed) if len(workload.splits) > 1 else (),
        order_dependent=stream_methods([options]),
        order=tuple(map(str, orders_for([options]))),
        model_cost=next(iter(model.costs), None),
    )


def _counts(part: Evaluated) -> dict[str, Any]:
    """What a result table accounts for, by the names that `RunSummary` has for it."""
    counted = part.rows.read(metrics.COUNT_COLUMNS)
    return {**metrics.video_counts(counted), "failures": metrics.failure_groups(counted)}


def write_class_files(study: Study, evaluated: Evaluated, folder: RunFolder) -> None:
    """Writes accuracies by class and confusion matrices, of each model under the study's own setting."""
    for number, model in enumerate(study.axes.models):
        part = evaluated.cell(number, 0)
        for split in study.workload.splits:
            if split.multi_label:
                continue
            for case in study.workload.cases_of(split, part.cases):
                varied = {axis: label for axis, label in model.coordinates.items() if axis in study.axes.names}
                words = [label_of(varied)] if varied else []
                words += [split.name] if len(study.workload.splits) > 1 else []
                name = plain_name("_".join([*words, case.method]))
                rows = rows_of(study.workload, split, part, case.case_id, CLASS_COLUMNS)
                classes = class_accuracies(rows, case.case_id, split.class_names)
                if any(one.videos for one in classes):
                    matrix = confusion_matrix(rows, case.case_id, len(split.class_names))
                    folder.storage.write(f"{name}_per_class.csv", per_class_csv(classes).encode())
                    folder.storage.write(f"{name}_confusion.png", confusion_picture(matrix, split.class_names))

"""From a folder in the competition's layout to a checked list of cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from nx46vx.data.cases import SKIPPED_BY_CONFIG, Case, Dataset
from nx46vx.data.coverage import Coverage, preflight, select_pairs
from nx46vx.data.integrity import DigestBook, FileFacts, Mapper, try_measure
from nx46vx.errors import DataError, EnvironmentFault, NX46Error
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.sink import EventSink

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES = "train_images", "train_labels", "test_images"
MIN_PAIRS = 3
CLASSES = ("background", "surface", "ignored")
NO_IMAGE, NO_LABEL = "label without image", "image without label"
_SAVE_EVERY = 64
_LAYOUT_FIX = f"give a folder with {TRAIN_IMAGES}/ID.tif, {TRAIN_LABELS}/ID.tif and {TEST_IMAGES}/ID.tif"

__all__ = ["Case", "Coverage", "Dataset", "discover", "preflight", "select_pairs"]


def discover(
    data_dir: Path, *, book: DigestBook, sink: EventSink, executor: Mapper, skip_cases: Collection[str] = (),
    io: IoClock | None = None,
) -> Dataset:  # fmt: skip
    """Find the pairs and the test volumes, measure what the book does not know, skip what cannot be used, by name.

    ``io`` counts the reading.

    Raises:
        DataError: a folder is missing or empty, no pairs, fewer than three usable ones, or a bad test file.
    """
    data_dir = Path(data_dir)
    images, labels, tests = (_listing(data_dir / name) for name in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES))
    pairs = sorted(images.keys() & labels.keys())
    if not pairs:
        found = f"{len(images)} images and {len(labels)} labels with no id in common"
        raise DataError("there is no pair of image and label", where=data_dir, found=found, fix=_LAYOUT_FIX)
    orphan_images, orphan_labels = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
    skips = {case_id: NO_LABEL for case_id in orphan_images} | {case_id: NO_IMAGE for case_id in orphan_labels}
    skips |= {case_id: SKIPPED_BY_CONFIG for case_id in pairs if case_id in skip_cases}
    if tests_only := sorted((set(skip_cases) & tests.keys()) - {*images, *labels}):
        raise DataError(
            "a test case cannot be skipped", where="data.skip_cases", found=", ".join(tests_only),
            fix="name training cases only",
        )  # fmt: skip
    wanted = [case_id for case_id in pairs if case_id not in skips]
    files = [(path, label) for case_id in wanted for path, label in ((images[case_id], False), (labels[case_id], True))]
    files += [(path, False) for _, path in sorted(tests.items())]
    facts = _measure(files, book=book, sink=sink, executor=executor, io=io or IoClock())

    train: list[Case] = []
    for case_id in wanted:
        case = _pair(case_id, images[case_id], labels[case_id], facts)
        if isinstance(case, Case):
            train.append(case)
        else:
            skips[case_id] = case
    test: list[Case] = []
    for case_id, path in sorted(tests.items()):
        known = facts[path]
        if isinstance(known, NX46Error):
            raise DataError(
                f"test case {case_id} cannot be used, and a test case cannot be skipped", where=path, found=known,
                fix="download the file again",
            )  # fmt: skip
        test.append(Case(case_id, path, None, known.shape, known.digest, None, None))
    skipped = tuple(sorted(skips.items()))
    for case_id, reason in skipped:
        sink.emit("CASE_SKIPPED", case_id=case_id, reason=reason)
    dataset = Dataset(tuple(train), tuple(test), tuple(orphan_images), tuple(orphan_labels), skipped)
    _report(dataset, data_dir, sink, sorted(set(skip_cases) - {*images, *labels}))
    if len(train) < MIN_PAIRS:
        raise DataError(
            f"only {len(train)} usable pairs, at least {MIN_PAIRS} are needed", where=data_dir,
            found="; ".join(f"{case_id}: {reason}" for case_id, reason in skipped) or f"{len(pairs)} pairs",
            fix="mend or replace the files named, or add pairs",
        )  # fmt: skip
    return dataset


def _listing(folder: Path) -> dict[str, Path]:
    """TIFFs of a folder by case id; hidden files are passed over."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            "the folder is not there or cannot be listed", where=folder, found=error.strerror, fix=_LAYOUT_FIX
        ) from error
    listing: dict[str, Path] = {}
    for path in entries:
        if path.name.startswith(".") or path.suffix.lower() not in (".tif", ".tiff"):
            continue
        if path.stem in listing:
            names = f"{listing[path.stem].name} and {path.name}"
            raise DataError("two files claim one case", where=folder, found=names, fix="keep one of them")
        listing[path.stem] = path
    if not listing:
        found = f"{len(entries)} other files" if entries else "an empty folder"
        raise DataError("the folder holds no TIFF", where=folder, found=found, fix=_LAYOUT_FIX)
    return listing


def _measure(
    files: list[tuple[Path, bool]], *, book: DigestBook, sink: EventSink, executor: Mapper, io: IoClock
) -> dict[Path, FileFacts | NX46Error]:
    """Facts of every file, from the book or measured over the executor; the book is saved as it grows."""
    known: dict[Path, FileFacts | NX46Error | None] = {path: book.get(path, label=label) for path, label in files}
    todo = [(path, label) for path, label in files if known[path] is None]
    fresh: Iterator[FileFacts | NX46Error] = executor.map(
        partial(_measured, io), [path for path, _ in todo], [label for _, label in todo]
    )
    facts: dict[Path, FileFacts | NX46Error] = {}
    measured = 0
    try:
        for index, (path, _) in enumerate(files):
            remembered = known[path]
            facts[path] = fact = remembered if remembered is not None else next(fresh)
            if isinstance(fact, EnvironmentFault):
                raise fact
            if remembered is None and isinstance(fact, FileFacts):
                book.record(path, fact)
                measured += 1
                if measured % _SAVE_EVERY == 0:
                    book.save()
            sink.emit(
                "PROGRESS_UPDATE", stage="discovery", file=str(path), index=index + 1, total=len(files),
                remembered=remembered is not None,
            )  # fmt: skip
    finally:
        book.save()
    return facts


def _measured(io: IoClock, path: Path, label: bool) -> FileFacts | NX46Error:
    with io.counting("read_volumes"):
        return try_measure(path, label)


def _pair(case_id: str, image: Path, label: Path, facts: Mapping[Path, FileFacts | NX46Error]) -> Case | str:
    """The case, or why it cannot be used."""
    of_image, of_label = facts[image], facts[label]
    if isinstance(of_image, NX46Error):
        return f"image: {of_image}"
    if isinstance(of_label, NX46Error):
        return f"label: {of_label}"
    if of_image.shape != of_label.shape:
        return f"shape mismatch: image {of_image.shape}, label {of_label.shape}"
    if of_label.counts is None:
        return "label: not counted"
    zeros, ones, _ = of_label.counts
    if zeros + ones == 0:
        return "all voxels are ignored (label 2)"
    if zeros == 0 or ones == 0:
        return f"a single class: {zeros} background and {ones} surface voxels"
    return Case(case_id, image, label, of_image.shape, of_image.digest, of_label.digest, of_label.counts)


def _report(dataset: Dataset, data_dir: Path, sink: EventSink, absent_skips: list[str]) -> None:
    totals = [sum(case.counts[value] for case in dataset.train if case.counts) for value in range(3)]
    voxels = max(1, sum(totals))
    shapes = Counter("x".join(map(str, case.shape)) for case in (*dataset.train, *dataset.test))
    sink.emit(
        "DATASET_DISCOVERY", data_dir=str(data_dir), pair_count=dataset.pair_count, usable_pairs=len(dataset.train),
        test_count=len(dataset.test), orphan_images=list(dataset.orphan_images),
        orphan_labels=list(dataset.orphan_labels), sizes=dict(sorted(shapes.items())),
        class_voxels=dict(zip(CLASSES, totals, strict=True)),
        class_fractions={name: total / voxels for name, total in zip(CLASSES, totals, strict=True)},
        prevalence=totals[1] / max(1, totals[0] + totals[1]), skipped=[list(item) for item in dataset.skipped],
        skip_cases_not_found=absent_skips, digest=dataset.digest,
    )  # fmt: skip

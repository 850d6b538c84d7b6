"""The files of a run's report: its page, and its figures as images."""

from collections.abc import Mapping
from pathlib import Path

from namm_jax.experiment.files import read_json, write_bytes
from namm_jax.report.page import page
from namm_jax.report.pictures import Picture, draw, draw_assimilation
from namm_jax.report.reading import read_posteriors, read_run


def write_report(folder: Path) -> None:
    """Writes `report.html` and `figures/` of a finished run into its folder.

    Raises:
        UserError: as of `reading.read_run`.
    """
    results = read_run(folder)
    pictures = draw(results)
    _write(folder, pictures)
    write_bytes(folder / 'report.html', page({str(folder): (results, pictures)}).encode())


def write_assimilation(folder: Path, operator: str) -> None:
    """Writes the figure of one measurement operator; the run need not have been evaluated.

    Raises:
        UserError: if its arrays are missing or damaged.
    """
    config, posteriors = read_json(folder / 'config.json')['config'], read_posteriors(folder)
    _write(folder, draw_assimilation(config, {operator: posteriors[operator]}))


def _write(folder: Path, pictures: Mapping[str, Picture]) -> None:
    (folder / 'figures').mkdir(exist_ok=True)
    for name, picture in pictures.items():
        write_bytes(folder / 'figures' / f'{name}.{picture.kind}', picture.data)

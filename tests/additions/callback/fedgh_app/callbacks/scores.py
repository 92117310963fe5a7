"""The headline of each round as a line of CSV."""

from fedgh_app.runs.history import Round
from fedgh_app.server.callback import Callback
from fedgh_app.server.federation import Federation


class Scores(Callback):
    def __init__(self, file: str) -> None:
        self.file = file

    def after_round(self, federation: Federation, current: Round) -> None:
        with (federation.directory / self.file).open("a") as lines:
            lines.write(f"{current.round},{current.evaluate.headline.score}\n")

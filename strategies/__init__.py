"""Server strategies for Flower: every rule is weights on client updates, most of them read off a Gramian."""

from strategies.conflict_averse import ConflictAverse
from strategies.fedavg import FedAvg
from strategies.fedaw import FedAW
from strategies.fedcdw import FedCDW
from strategies.feddyn import FedDyn
from strategies.fedgh import FedGH
from strategies.robust import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

__all__ = [
    "Bulyan",
    "ConflictAverse",
    "FedAW",
    "FedAvg",
    "FedCDW",
    "FedDyn",
    "FedGH",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
]

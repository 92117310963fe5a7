"""Server strategies for Flower: every rule is weights on client updates, most of them read off a Gramian."""

from strategies.fedavg import FedAvg
from strategies.fedaw import FedAW
from strategies.fedcdw import FedCDW
from strategies.fedgh import FedGH

__all__ = ["FedAW", "FedAvg", "FedCDW", "FedGH"]

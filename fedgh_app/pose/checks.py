"""What of a config only pose estimation can tell wrong; before anything is built, and without waiting for torch."""

from fedgh_app.errors import UserError
from fedgh_app.resources import Values

# Far beyond what anybody trains; a slip or a hostile server would take all memory of every client.
LARGEST_SIDE = 1024
WIDEST_HEAD = 4096

DECODINGS = ("argmax", "quarter", "dark")


def check(values: Values) -> None:
    """Refuse (UserError) sizes of images that no network halves, and ways to read maps that there are not."""
    size = list(values["dataset"]["input_size"])
    if len(size) != 2 or any(type(side) is not int or not 32 <= side <= LARGEST_SIDE or side % 32 for side in size):
        raise UserError(
            f"dataset.input_size={size}: expected [height, width], each a multiple of 32, at most {LARGEST_SIDE}"
        )
    width = values["model"].get("head_width")
    if isinstance(width, int) and width > WIDEST_HEAD:
        raise UserError(f"model.head_width={width}: expected a whole number of at most {WIDEST_HEAD}")
    decoding = values["evaluate"]["decoding"]
    if decoding not in DECODINGS:
        raise UserError(f"evaluate.decoding={decoding}: expected argmax, quarter or dark")

"""What a site tells the server: nothing of its files when something fails, no update without the noise it demands."""

from dataclasses import astuple
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedgh_app.config.compose import fedgh_home
from fedgh_app.config.settings import Privacy
from fedgh_app.config.site import SitePaths
from fedgh_app.errors import RunFailed, UserError
from fedgh_app.resources import Values

# Node config of a site: it trains only where its own update gets at least this noise multiplier before it is sent.
DEMAND = "noise-multiplier"


def check_demand(privacy: Privacy, node_config: Values) -> None:
    """Refuse (RunFailed) to train where a site's node config demands more noise than the run's ``privacy`` promises;
    UserError where what it demands is no number.
    """
    demanded = node_config.get(DEMAND)
    if demanded is None:
        return
    if not isinstance(demanded, int | float):
        raise UserError(f"{DEMAND}={demanded}: expected a number, in the site's node config")
    promised = privacy.noise_multiplier if privacy.name == "local" else 0.0
    if not promised >= demanded:
        raise RunFailed(
            f"privacy={privacy.name}: updates of this site get a noise multiplier of {promised:g}; its node "
            f"config expects at least {DEMAND}={demanded:g} with privacy=local"
        )


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod of the ClientApp: of a site's failure the server learns no path, no file's name, and no value of its data.

    What was raised stays in the site's own log, as the cause of what the server is told.
    """
    paths = SitePaths.of(context.node_config)
    try:
        return call_next(message, context)
    except Exception as error:
        if paths.data_root is None:
            raise
        if not isinstance(error, UserError | RunFailed):
            raise RunFailed(f"{type(error).__name__} at the site; its own log says more") from error
        if any(path in str(error) for path in _spellings(paths)):
            raise RunFailed("a file of the site cannot be used; its own log says which and why") from error
        raise


def _spellings(paths: SitePaths) -> set[str]:
    """The site's paths, as its config has them and as they are resolved. A message about a file begins with it."""
    named = [*filter(None, astuple(paths)), fedgh_home()]
    return {str(path) for name in named for path in (name, Path(name).expanduser(), Path(name).expanduser().resolve())}

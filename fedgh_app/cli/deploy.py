"""``fedgh deploy``: what a federation of real machines needs."""

from pathlib import Path
from typing import Annotated

import typer

from fedgh_app.cli.terminal import PASS_ON, say
from fedgh_app.runtimes import keys as key_files

app = typer.Typer(help="Make what a federation of real machines needs (docs/deployment.md).", no_args_is_help=True)


@app.command()
def keys(
    out: Annotated[Path, typer.Argument(help="New folder to write.")],
    host: Annotated[list[str], typer.Option(help="Name or IP address that sites reach the server by; may repeat.")],
    site: Annotated[list[str], typer.Option(help="Name of a site; may repeat.")],
    days: Annotated[
        int, typer.Option(help="Days that the server's certificate is valid.", min=1, max=key_files.AUTHORITY_DAYS)
    ] = 825,
) -> None:
    """Make the federation's keys: one folder for the server, one for each site."""
    key_files.make_keys(out, host, site, days=days)
    say(f"{out / 'server'}  stays on the server, with the public key of every site")
    for name in site:
        say(f"{out / name}  goes to {name}, over a channel that you trust, and nowhere else")
    say(f"{out / 'ca.key'}  goes offline: whoever has it can pose as the server; needed for a new certificate")


@app.command()
def site(
    out: Annotated[Path, typer.Argument(help="Folder that `fedgh deploy keys` wrote.")],
    name: Annotated[str, typer.Argument(help="Name of the new site.")],
) -> None:
    """Make the keys of one more site."""
    key_files.add_site(out, name)
    say(f"{out / name}  goes to {name}, over a channel that you trust, and nowhere else")


@app.command()
def certificate(
    out: Annotated[Path, typer.Argument(help="Folder that `fedgh deploy keys` wrote, with its ca.key.")],
    host: Annotated[list[str], typer.Option(help="Name or IP address that sites reach the server by; may repeat.")],
    days: Annotated[int, typer.Option(help="Days that it is valid.", min=1, max=key_files.AUTHORITY_DAYS)] = 825,
) -> None:
    """Make a new server certificate, before the old one ends or for another name; sites change nothing."""
    key_files.renew(out, host, days=days)
    say(f"{out / 'server' / 'server.crt'}  is new: restart the SuperLink and what stands before it")


@app.command(context_settings=PASS_ON)
def supernode(context: typer.Context) -> None:
    """Run a site: flower-supernode, with its options, and beside it what `fedgh deploy executor` is."""
    from fedgh_app.runtimes.executor import supernode as become

    become(context.args)


@app.command(context_settings=PASS_ON)
def executor(context: typer.Context) -> None:
    """Run a site's app, for `flower-supernode --isolation process`: flower-superexec, with libraries loaded once."""
    from fedgh_app.runtimes.executor import executor as become

    become(context.args)


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Bundle that `flwr build` wrote.")],
    key: Annotated[Path, typer.Option(help="OpenSSH private key, as `ssh-keygen -t ed25519 -N ''` writes it.")],
    entity: Annotated[str, typer.Option("--as", help="What sites call its owner in their file of trusted entities.")],
) -> None:
    """Sign a bundle that you have read."""
    from fedgh_app.runtimes.bundles import sign_bundle

    say(sign_bundle(bundle, key, entity))


@app.command()
def bundles(
    bundle: Annotated[list[Path], typer.Argument(help="Bundles that `flwr build` wrote, signatures beside them.")],
    port: Annotated[int, typer.Option(help="Port on loopback.", min=1, max=65535)] = 8001,
) -> None:
    """Hand signed bundles to a SuperLink on this machine, until Ctrl-C."""
    from fedgh_app.runtimes.bundles import BundleServer, signatures

    server = BundleServer(bundle, port)
    for (name, version), file in server.bundles.items():
        signed = ", ".join(signature["public_key_id"] for signature in signatures(file)) or "nobody"
        say(f"{name}=={version}  signed by {signed}")
    say(f"for a SuperLink with FLWR_SUPERGRID_API_URL=http://127.0.0.1:{port}")
    server.serve_forever()

"""A site that names trusted entities, and a SuperLink that has its bundles from `fedgh deploy bundles`."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import servers
from flwr.cli.build import build_fab_from_disk
from servers import Server, signing_key

from fedgh_app.runtimes.bundles import BundleServer, sign_bundle
from fedgh_app.runtimes.superlink import free_port

pytestmark = pytest.mark.slow
REFUSED = "The FAB could not be verified."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("trusted")
    bundle, reviewer = folder / "double.fab", signing_key(folder, "reviewer")
    hub = f"http://127.0.0.1:{(port := free_port())}"
    with servers.server(folder, ["site-a"], FLWR_SUPERGRID_API_URL=hub) as made:
        bundle.write_bytes(build_fab_from_disk(folder / "app"))
        offered = BundleServer([bundle], port)
        threading.Thread(target=offered.serve_forever, daemon=True).start()
        (folder / "trusted.yaml").write_text(f"fpk_lab: {reviewer.with_suffix('.pub').read_text()}")
        made.start_superlink()
        made.start_site("site-a", "--trusted-entities", str(folder / "trusted.yaml"))
        yield made
        offered.shutdown()
        offered.server_close()


def test_a_site_runs_only_what_somebody_it_trusts_has_signed(server: Server) -> None:
    bundle = server.folder / "double.fab"
    assert list(server.double(str(server.folder / "app")).values()) == [REFUSED]  # nobody has signed it
    forged = sign_bundle(bundle, signing_key(server.folder, "stranger"), "fpk_lab")
    assert list(server.double("@fedgh/double==1.0.0").values()) == [REFUSED]
    forged.unlink()
    sign_bundle(bundle, server.folder / "reviewer", "fpk_lab")
    assert server.double("@fedgh/double==1.0.0") == {"site-a": True}

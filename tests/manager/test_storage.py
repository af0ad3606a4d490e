"""Where checkpoints are put to."""

from __future__ import annotations

import pytest

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.manager import api, storage
from tests.manager.api_server import NAMESPACE, Server, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.storage import Store


def store_of(url: str) -> Store:
    where = api.Storage(url=url)
    return asked(Server(), lambda cluster: storage.store_of(cluster, NAMESPACE, where))


def test_a_url_is_a_directory_or_a_bucket() -> None:
    assert store_of("file:///srv/kept").url == "/srv/kept"
    assert store_of("s3://bucket/kept").url == "s3://bucket/kept"


@pytest.mark.parametrize("url", ["volume://another-pod/data", "file://volume://uid/data"])
def test_what_an_agent_opens_for_itself_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected file:///DIRECTORY"):
        store_of(url)

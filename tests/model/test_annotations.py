import pytest

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model.annotations import Identity, checkpoint_name, restore_order, unknown

ROOT = "/mnt/grit-agent"
IDENTITY = Identity("shop", "cart-7", "uid-7", "sandbox-7", "app")


def annotated(**own: str) -> dict[str, str]:
    """The annotations of a CRI container; keys of grit.dev/ by their last part."""
    return {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-name": "cart-7",
        "io.kubernetes.cri.sandbox-uid": "uid-7",
        "io.kubernetes.cri.sandbox-id": "sandbox-7",
        "io.kubernetes.cri.container-name": "app",
        **{f"grit.dev/{key.replace('_', '-')}": value for key, value in own.items()},
    }


def test_a_pod_without_our_annotations_starts_as_any_pod() -> None:
    assert restore_order(annotated(), ROOT) is None


def test_restore_name_means_a_directory_of_the_pods_namespace() -> None:
    order = restore_order(annotated(restore_name="nightly"), ROOT)
    assert order is not None
    assert order.path == ("shop", "nightly")
    assert order.identity == IDENTITY


def test_the_sandbox_itself_is_never_restored() -> None:
    annotations = annotated(restore_name="nightly")
    annotations["io.kubernetes.cri.container-type"] = "sandbox"
    assert restore_order(annotations, ROOT) is None


def test_checkpoint_names_the_directory_when_both_are_given() -> None:
    order = restore_order(
        annotated(restore_name="attempt-2", checkpoint=f"{ROOT}/shop/weekly"), ROOT
    )
    assert order is not None
    assert order.path == ("shop", "weekly")


def test_by_hand_a_directory_beneath_the_root_is_enough() -> None:
    order = restore_order({"grit.dev/checkpoint": f"{ROOT}/shop/weekly"}, ROOT)
    assert order is not None
    assert order.path == ("shop", "weekly")
    assert order.identity is None


def test_by_hand_a_name_alone_says_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match=r"restore-name needs the pod's identity"):
        restore_order({"grit.dev/restore-name": "weekly"}, ROOT)


@pytest.mark.parametrize(
    "directory",
    [
        "/etc",
        "/mnt/grit-agent-2/shop/weekly",
        f"{ROOT}/bank/weekly",
        f"{ROOT}/shop",
        f"{ROOT}/shop/",
        f"{ROOT}/shop/.",
        f"{ROOT}/shop/../bank/weekly",
        f"{ROOT}/shop/weekly/..",
        "shop/weekly",
        "",
    ],
)
def test_a_directory_that_is_not_the_namespaces_is_refused(directory: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"annotation grit.dev/checkpoint: .* beneath"):
        restore_order(annotated(checkpoint=directory), ROOT)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "-x", "a\nb", "a" * 254])
def test_a_name_that_is_no_plain_component_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="checkpoint name"):
        checkpoint_name(name)


def test_an_unknown_key_that_would_change_a_restore_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"grit\.dev/restore-nmae is unknown .* upgrade"):
        restore_order(annotated(restore_nmae="weekly"), ROOT)


def test_an_unknown_key_that_asks_nothing_stops_nothing() -> None:
    annotations = annotated(restore_name="weekly", migration_of="cart-6")
    order = restore_order(annotations, ROOT)
    assert order is not None
    assert order.path == ("shop", "weekly")
    assert unknown(annotations) == ["grit.dev/migration-of"]
    assert restore_order(annotated(migration_of="cart-6"), ROOT) is None


@pytest.mark.parametrize("text", ["ab" * 32, f"sha256:{'ab' * 32}"])
def test_a_pinned_manifest_goes_with_the_order(text: str) -> None:
    order = restore_order(annotated(restore_name="weekly", manifest_digest=text), ROOT)
    assert order is not None
    assert order.manifest_sha256 == "ab" * 32


@pytest.mark.parametrize("text", ["latest", "ab" * 31, f"sha512:{'ab' * 32}", "AB" * 32])
def test_a_digest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"manifest-digest: expected sha256"):
        restore_order(annotated(restore_name="weekly", manifest_digest=text), ROOT)


def test_a_policy_that_is_not_offered_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"on-failure: expected fail or cold-start"):
        restore_order(annotated(restore_name="weekly", on_failure="maybe"), ROOT)


@pytest.mark.parametrize("value", ["", "..", "a/b"])
def test_an_identity_that_could_leave_its_directory_is_refused(value: str) -> None:
    annotations = annotated(restore_name="weekly")
    annotations["io.kubernetes.cri.sandbox-uid"] = value
    with pytest.raises(InvalidArgumentError, match=r"sandbox-uid: unusable"):
        restore_order(annotations, ROOT)

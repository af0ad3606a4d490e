"""The annotations by which containerd's CRI says what a container is.

Source: containerd pkg/cri/annotations/annotations.go.
"""

PREFIX = "io.kubernetes.cri."
CONTAINER_NAME = f"{PREFIX}container-name"
CONTAINER_TYPE = f"{PREFIX}container-type"
SANDBOX_ID = f"{PREFIX}sandbox-id"
SANDBOX_UID = f"{PREFIX}sandbox-uid"

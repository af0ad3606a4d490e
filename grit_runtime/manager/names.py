"""What both the manager and the objects that install it name (runtime-config/kubernetes)."""

NAMESPACE = "grit-system"
MANAGER = "grit-manager"  # its Deployment, ServiceAccount, Service, Lease, roles and webhooks
AGENT = "grit-agent"  # the DaemonSet and its ServiceAccount, and the audience of tokens for it

FINALIZER = "manager.grit.dev/finalizer"

CERTIFICATES = (
    "grit-manager-certificates"  # the Secret: the CAs' keys and the webhooks' certificate
)
CA_CONFIG_MAP, CA_KEY = "grit-ca", "ca.pem"  # the certificate of the agents' CA
SIGNER = "grit.dev/agent"
AGENT_TOKEN_PATH = "/var/run/secrets/grit.dev/agent/token"  # noqa: S105  the manager's, for agents

WEBHOOK_PORT = 9443
METRICS_PORT = 9464  # and /healthz
AGENT_API_PORT = 9466

POD_PATH = "/pods"
OBJECT_PATH = "/objects"
EVICTION_PATH = "/evictions"
DELETION_PATH = "/deletions"
JOB_PATH = "/jobs"

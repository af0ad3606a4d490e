"""Where grit keeps what, and where a node keeps what grit looks at."""

RUN_DIR = "/run/grit"  # emptied by a reboot
STATE_DIR = "/var/lib/grit"
LOG_DIR = "/var/log/grit"

# kubelet keeps a directory <namespace>_<pod>_<uid> here for as long as the pod exists.
POD_LOGS_DIR = "/var/log/pods"

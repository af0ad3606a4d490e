"""The flags of mounts that forbid something: compared before a restore and after it. Pure."""

FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}  # as /proc and mount(2) have them
OPTIONS = {**FLAGS, "rro": FLAGS["ro"]}  # as config.json has them
ALL = sum(FLAGS.values())

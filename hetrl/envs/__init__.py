"""Gymnasium environments in which an agent decides about plans.

Importing this package registers two ids, and imports neither torch nor what the environments are made of:

- `Hetrl/Partition-v0`: the device is a surrogate (or anything else that always says the same of the same plan);
- `Hetrl/PartitionOnDevice-v0`: the same environment, registered as nondeterministic, for real devices.

    gym.make("hetrl.envs:Hetrl/Partition-v0", device="d1", model="vgg16")
    gym.make_vec("hetrl.envs:Hetrl/Partition-v0", num_envs=64, device="d1", model="vgg16")
    gym.make("hetrl.envs:Hetrl/Partition-v0", device="host", model="resnet18")

Either id takes any device: on a real one the environment's `spec` says that it is nondeterministic, whatever the id
says. See `partition.PartitionEnv`.
"""

from gymnasium import register

PARTITION = "Hetrl/Partition-v0"
PARTITION_ON_DEVICE = "Hetrl/PartitionOnDevice-v0"

for _id, _nondeterministic in ((PARTITION, False), (PARTITION_ON_DEVICE, True)):
    register(
        _id,
        entry_point="hetrl.envs.partition:PartitionEnv",
        vector_entry_point="hetrl.envs.vector:PartitionVectorEnv",
        nondeterministic=_nondeterministic,
    )

"""An OCI registry as a store: requests (`client`), logins (`auth`, `docker`), bytes (`transport`, `upload`)."""

from tonnage.stores.registry.auth import Credentials, CredentialSource
from tonnage.stores.registry.client import RegistryStore
from tonnage.stores.registry.docker import docker_config
from tonnage.stores.registry.transport import Timeouts

__all__ = ["CredentialSource", "Credentials", "RegistryStore", "Timeouts", "docker_config"]

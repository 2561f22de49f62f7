"""WHAT THE ENDPOINT DOES WITH A REQUEST: the runtime, the gateway in front of it, deployments."""

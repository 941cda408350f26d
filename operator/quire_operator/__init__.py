"""The kopf operator: turns an LLMDeployment into GPU StatefulSets, a router and their Services."""

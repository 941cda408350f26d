"""Choices that boards share."""

from quire_monitoring.panels import Variable

NAMESPACE = Variable(
    name="namespace",
    label="Namespace",
    query='label_values({__name__=~"quire_engine_num_requests_running'
    '|quire_router_requests_in_flight|quire_llmdeployment_replicas"}, namespace)',
)
DEPLOYMENT = Variable(
    name="deployment",
    label="Deployment",
    query='label_values({__name__=~"quire_engine_num_requests_running'
    '|quire_router_requests_in_flight",namespace=~"$namespace"}, quire_dev_deployment)',
)
REPLICA = Variable(
    name="replica",
    label="Replica",
    query='label_values(quire_engine_num_requests_running{namespace=~"$namespace",'
    'quire_dev_deployment=~"$deployment"}, pod)',
)
REPLICA_ADDRESS = Variable(
    name="replica",
    label="Replica",
    query='label_values(quire_router_replica_up{namespace=~"$namespace",'
    'quire_dev_deployment=~"$deployment"}, replica)',
)
OPERATED = Variable(
    name="deployment",
    label="Deployment",
    query='label_values(quire_llmdeployment_replicas{namespace=~"$namespace"}, name)',
)

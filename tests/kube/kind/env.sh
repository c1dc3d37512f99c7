# How nodes of a kind cluster fail, for tests/kube: `. tests/kube/kind/env.sh`, then `make test-kube`. {node} is a node's name, and
# its container's too.
kind get kubeconfig --name orchestrator >/tmp/orchestrator-kind.kubeconfig
export ORCHESTRATOR_TEST_KUBECONFIG=/tmp/orchestrator-kind.kubeconfig
export ORCHESTRATOR_TEST_IMAGE=docker.io/library/orchestrator:test
export ORCHESTRATOR_TEST_POWER_OFF='docker kill {node}'
export ORCHESTRATOR_TEST_POWER_ON='docker start {node}'
export ORCHESTRATOR_TEST_UNPLUG='docker exec {node} sh -c "ip route show default >/run/default-route; ip link set eth0 down"'
export ORCHESTRATOR_TEST_PLUG='docker exec {node} sh -c "ip link set eth0 up; ip route replace \$(cat /run/default-route)"'
export ORCHESTRATOR_TEST_STOP_API='docker exec {node} mv /etc/kubernetes/manifests/kube-apiserver.yaml /etc/kubernetes/'
export ORCHESTRATOR_TEST_START_API='docker exec {node} mv /etc/kubernetes/kube-apiserver.yaml /etc/kubernetes/manifests/'

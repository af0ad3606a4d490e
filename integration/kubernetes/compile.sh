#!/bin/bash
# usage: compile.sh DIRECTORY PROGRAM...
#
# Runs in the root filesystem that programs.py makes, off the network. DIRECTORY has the source
# package; the programs come to lie in it.
set -euo pipefail

directory=$1
shift
cd "$directory"
dpkg-source --no-check --extract kubernetes_*.dsc source

# The vendored copy walks maps as Go did before 1.18: an API server built with a newer one dies of
# the first custom resource.
rm -r source/vendor/github.com/modern-go/reflect2
cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 source/vendor/github.com/modern-go/

# kubelet has to call CRI by the name v1 (Kubernetes 1.23, staging/src/k8s.io/cri-api/pkg/apis/runtime/v1,
# whose messages are those of v1alpha2 with fields added): containerd 2 has no v1alpha2.
sed -i 's,"/runtime\.v1alpha2\.,"/runtime.v1.,' \
    source/staging/src/k8s.io/cri-api/pkg/apis/runtime/v1alpha2/api.pb.go

# The makefiles want to stand in a GOPATH.
mkdir -p go/src/k8s.io
ln -s ../../../source go/src/k8s.io/kubernetes
export PATH=/usr/lib/go-1.19/bin:$PATH HOME=$directory GOPATH=$directory/go CGO_ENABLED=0
make -C go/src/k8s.io/kubernetes WHAT="${*/#/cmd/}" GOLDFLAGS="-s -w"
for program in "$@"; do
    mv "source/_output/bin/$program" .
done

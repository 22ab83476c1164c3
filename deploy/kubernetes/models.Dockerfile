# Model files as an image, which statefulset.yaml copies from. Put yours in the place of this one.
#
#   docker build -f deploy/kubernetes/models.Dockerfile -t forebay-models:1 .     from the root of the repository
FROM debian:bookworm-slim
COPY tests/data/higgs/higgs.model.txt /models/higgs.txt
USER 65532:65532

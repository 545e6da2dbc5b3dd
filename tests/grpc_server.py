"""A stand-in for TensorFlow Serving's gRPC API, for tests only.

It has predict and metadata of `rest_server.Models`.
"""

import contextlib
from concurrent import futures

import grpc
import rest_server
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers as TensorFlow Serving's prediction service does."""

    def __init__(self, models):
        self.models = models

    def _find(self, specification, context):
        version = specification.version.value if specification.HasField("version") else None
        return self.models.find(specification.name, version)

    def Predict(self, request, context):
        try:
            version, model = self._find(request.model_spec, context)
            name, definition = self.models.signature(model, request.model_spec.signature_name)
            if set(request.inputs) != set(definition.inputs):
                raise rest_server.Refused(
                    400, f"input size does not match signature: {', '.join(definition.inputs)}"
                )
            inputs = {key: tf.make_ndarray(tensor) for key, tensor in request.inputs.items()}
            outputs = self.models.run(model, name, inputs)
        except rest_server.Refused as refused:
            context.abort(CODES[refused.args[0]], refused.args[1])
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name, answer.model_spec.version.value = request.model_spec.name, version
        for key in request.output_filter or outputs:
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return answer

    def GetModelMetadata(self, request, context):
        try:
            _, model = self._find(request.model_spec, context)
        except rest_server.Refused as refused:
            context.abort(CODES[refused.args[0]], refused.args[1])
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=model.signatures)
        answer.metadata["signature_def"].Pack(signatures)
        return answer


@contextlib.contextmanager
def serving(service, max_bytes=-1, certificate=None):
    """Yields the address, host:port, of a server of a `Service`.

    It takes messages of up to `max_bytes` (-1: any), and speaks TLS with a `certificate`: the files
    of one and of its key.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", max_bytes)]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    if certificate:
        chain, key = (path.read_bytes() for path in certificate)
        credentials = grpc.ssl_server_credentials([(key, chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()

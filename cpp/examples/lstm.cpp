// A forward and a backward pass of an LSTM from C++.
#include <fastrnn/fastrnn.hpp>

#include <cstdio>
#include <vector>

int main() {
  const std::int64_t B = 4, T = 10, I = 3, H = 16, G = fastrnn::cell_traits(fastrnn::Cell::lstm).gates;
  const std::vector<float> x(B * T * I, 0.5f), kernel(I * G * H, 0.1f), recurrent(H * G * H, 0.01f), bias(G * H, 0.0f);

  const fastrnn::Weights<float> weights{
      fastrnn::Cell::lstm, I, H, {kernel.data(), G * H, 1}, {recurrent.data(), G * H, 1}, {bias.data(), G * H, 1}};

  std::vector<float> y(B * T * H), tape(T * B * fastrnn::cell_traits(fastrnn::Cell::lstm).tape_slots * H);
  fastrnn::Forward<float> forward{};
  forward.batch = B;
  forward.time = T;
  forward.x = x.data();
  forward.x_batch_stride = T * I;
  forward.x_time_stride = I;
  forward.y = y.data();
  forward.y_batch_stride = T * H;
  forward.y_time_stride = H;
  forward.tape = tape.data();  // for the gradient; null in inference
  fastrnn::forward(fastrnn::PackedWeights<float>(weights), forward);

  const std::vector<float> dy(y.size(), 1.0f);
  std::vector<float> dx(x.size()), dkernel(kernel.size()), drecurrent(recurrent.size()), dbias(bias.size());
  fastrnn::Backward<float> backward{};
  backward.batch = B;
  backward.time = T;
  backward.x = x.data();
  backward.x_batch_stride = T * I;
  backward.x_time_stride = I;
  backward.tape = tape.data();
  backward.dy = dy.data();
  backward.dy_batch_stride = T * H;
  backward.dy_time_stride = H;
  backward.dx = dx.data();
  backward.dx_batch_stride = T * I;
  backward.dx_time_stride = I;
  backward.dkernel = dkernel.data();
  backward.drecurrent_kernel = drecurrent.data();
  backward.dbias = dbias.data();
  fastrnn::backward(fastrnn::PackedWeights<float>(weights, fastrnn::Pass::backward), backward);

  std::printf("%s on %d threads: last h %.6f, first dx %.6f\n", fastrnn::isa(), fastrnn::num_threads(), y.back(),
              dx.front());
}

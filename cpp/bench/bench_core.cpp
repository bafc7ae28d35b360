// Times the core without Python: inference, forward and backward of training, and packing.
//
//   bench_core [--threads N] [--isa NAME] [--seconds X] [CELL B T I H [float32 | float64]]
//
// Without sizes, workloads are read from the standard input, one per line in the same form; what follows on a line is
// printed beside its times. `fastrnn bench --list` prints such lines.
#include <fastrnn/fastrnn.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Index = std::int64_t;

struct Workload {
  fastrnn::Cell cell;
  Index batch, time, inputs, units;
  std::string dtype, rest;
};

/// `CELL B T I H [float32 | float64] [anything]`
Workload parse(const std::string& line) {
  std::istringstream words(line);
  std::string cell;
  Workload w;
  if (!(words >> cell >> w.batch >> w.time >> w.inputs >> w.units) || w.batch < 1 || w.time < 1 || w.inputs < 1)
    throw std::invalid_argument("a workload must be CELL B T I H with positive sizes, got '" + line + "'");
  w.cell = fastrnn::cell_from_name(cell);
  if (!(words >> w.dtype)) w.dtype = "float32";
  if (w.dtype != "float32" && w.dtype != "float64")
    throw std::invalid_argument("the dtype must be float32 or float64, got '" + w.dtype + "'");
  words >> w.rest;
  return w;
}

template <class Number>
Number parse_number(const std::string& option, const std::string& value) {
  std::istringstream words(value);
  Number number;
  if (!(words >> number) || !words.eof())
    throw std::invalid_argument(option + " must be a number, got '" + value + "'");
  return number;
}

/// The shortest time of a call of f in ms, of at least 3 calls and about so many seconds, after one to warm up.
template <class F>
double shortest(double seconds, const F& f) {
  using Clock = std::chrono::steady_clock;
  f();
  double best = 1e300, total = 0;
  for (int calls = 0; calls < 3 || total < seconds; ++calls) {
    const auto start = Clock::now();
    f();
    const double time = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, time);
    total += time;
  }
  return best * 1e3;
}

/// Arrays where those of the Python package lie.
template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(fastrnn::allocate(static_cast<Index>(n * sizeof(T))).release()); }
  void deallocate(T* data, std::size_t n) { fastrnn::ReleaseMemory{static_cast<Index>(n * sizeof(T))}(data); }
  bool operator==(const Allocator&) const { return true; }
  bool operator!=(const Allocator&) const { return false; }
};
template <class T>
using Array = std::vector<T, Allocator<T>>;

template <class T>
void run(const Workload& w, double seconds) {
  const auto traits = fastrnn::cell_traits(w.cell);
  const Index B = w.batch, steps = w.time, I = w.inputs, H = w.units, columns = traits.gates * H;
  const Index R = traits.projected ? (H + 1) / 2 : H;  // how wide h is, and what U multiplies
  const Index hidden = traits.hidden > 1 ? traits.hidden * H : R;
  std::mt19937 random(1);
  const auto draw = [&](Index n, double scale) {
    std::normal_distribution<float> normal(0, static_cast<float>(scale));
    Array<T> values(static_cast<std::size_t>(n));
    for (T& value : values) value = normal(random);
    return values;
  };
  const auto x = draw(B * steps * I, 1), dy = draw(B * steps * R, 1), kernel = draw(I * columns, 1 / std::sqrt(I)),
             recurrent_kernel = draw(hidden * columns, 0.5 / std::sqrt(hidden)),
             bias = draw(traits.bias_rows * columns, 0.1), parameters = draw(traits.parameters * H, 0.1),
             projection = draw(H * R, 1 / std::sqrt(H)), cell_norm = draw(2 * H, 1);
  Array<T> y(dy.size()), dx(x.size()), dkernel(kernel.size()), drecurrent_kernel(recurrent_kernel.size()),
      dbias(bias.size()), dparameters(parameters.size()), dprojection(projection.size()), dcell_norm(cell_norm.size()),
      tape(static_cast<std::size_t>(B * steps * traits.tape_slots * H));

  const fastrnn::Weights<T> weights{w.cell,
                                    I,
                                    H,
                                    {kernel.data(), columns, 1},
                                    {recurrent_kernel.data(), columns, 1},
                                    {bias.data(), columns, 1},
                                    {parameters.data(), H, 1},
                                    R,
                                    {projection.data(), R, 1},
                                    {},
                                    {traits.cell_norm ? cell_norm.data() : nullptr, H, 1}};
  const fastrnn::PackedWeights<T> forward_weights(weights), backward_weights(weights, fastrnn::Pass::backward);
  const auto set_input = [&](auto& call) {
    call.batch = B;
    call.time = steps;
    call.x = x.data();
    call.x_batch_stride = steps * I;
    call.x_time_stride = I;
  };
  fastrnn::Forward<T> forward{};
  set_input(forward);
  forward.y = y.data();
  forward.y_batch_stride = steps * R;
  forward.y_time_stride = R;
  fastrnn::Backward<T> backward{};
  set_input(backward);
  backward.tape = tape.data();
  backward.dy = dy.data();
  backward.dy_batch_stride = steps * R;
  backward.dy_time_stride = R;
  backward.dx = dx.data();
  backward.dx_batch_stride = steps * I;
  backward.dx_time_stride = I;
  backward.dkernel = dkernel.data();
  backward.drecurrent_kernel = drecurrent_kernel.data();
  backward.dbias = dbias.data();
  backward.dparameters = dparameters.data();
  backward.dprojection = dprojection.data();
  backward.dcell_norm = dcell_norm.data();

  const double infer = shortest(seconds, [&] { fastrnn::forward(forward_weights, forward); });
  forward.tape = tape.data();
  const double training_forward = shortest(seconds, [&] { fastrnn::forward(forward_weights, forward); });
  const double training_backward = shortest(seconds, [&] { fastrnn::backward(backward_weights, backward); });
  const double pack =
      shortest(seconds, [&] { const fastrnn::PackedWeights<T> one(weights), other(weights, fastrnn::Pass::backward); });
  double train = training_forward + training_backward + pack;
  if (fastrnn::reads_in_place<T>(weights, forward))
    train = shortest(seconds, [&] { fastrnn::forward(weights, forward); }) +
            shortest(seconds, [&] { fastrnn::backward(weights, backward); });
  const double gflop = 2e-9 * double(B) * double(steps) *
                       (double(columns) * double(I + hidden) + (traits.projected ? double(H) * double(R) : 0));
  std::printf("%-16s %4lld %4lld %4lld %4lld %-7s %9.4f %7.1f %9.4f %9.4f %9.4f %9.4f %7.1f  %s\n", traits.name,
              static_cast<long long>(B), static_cast<long long>(steps), static_cast<long long>(I),
              static_cast<long long>(H), w.dtype.c_str(), infer, gflop / infer * 1e3, training_forward,
              training_backward, pack, train, 3 * gflop / train * 1e3, w.rest.c_str());
  std::fflush(stdout);
}

void run(const std::string& line, double seconds) {
  const Workload w = parse(line);
  if (w.dtype == "float32")
    run<float>(w, seconds);
  else
    run<double>(w, seconds);
}

}  // namespace

int main(int argc, char** argv) try {
  double seconds = 0.3;
  std::string workload;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      workload += word + " ";
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(word + " needs a value");
    const std::string value = argv[++i];
    if (word == "--threads")
      fastrnn::set_num_threads(parse_number<int>(word, value));
    else if (word == "--isa")
      fastrnn::set_isa(value);
    else if (word == "--seconds")
      seconds = parse_number<double>(word, value);
    else
      throw std::invalid_argument("the options are --threads N, --isa NAME and --seconds X, got " + word);
  }
  std::printf(
      "fastrnn %s, %s, %s, %d threads; times in ms, rates in GFLOP/s; train: forward, backward and "
      "pack, or both passes on weights in place where those read them there\n",
      fastrnn::version(), fastrnn::compiler(), fastrnn::isa(), fastrnn::num_threads());
  std::printf("%-16s %4s %4s %4s %4s %-7s %9s %7s %9s %9s %9s %9s %7s\n", "cell", "B", "T", "I", "H", "dtype", "infer",
              "rate", "forward", "backward", "pack", "train", "rate");
  if (!workload.empty())
    run(workload, seconds);
  else
    for (std::string line; std::getline(std::cin, line);)
      if (!line.empty()) run(line, seconds);
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_core: %s\n", error.what());
  return 1;
}

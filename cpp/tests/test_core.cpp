// Tests of the C++ interface without Python: properties that need no second set of equations. Against the NumPy
// reference the kernels are tested from Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastrnn/fastrnn.hpp"

namespace {

using namespace fastrnn;
using Index = std::int64_t;

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

template <class F>
void check_throws(F&& f, const std::string& part) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).find(part) != std::string::npos,
          std::string("the message '") + error.what() + "' has '" + part + "'");
    return;
  }
  check(false, "throws '" + part + "'");
}

/// One layer and a batch for it, with everything that its two passes read and write.
template <class T>
struct Problem {
  Cell cell;
  Index B, steps, I, H, G;
  CellTraits traits;
  Index R;                                   // how wide h is
  bool extended;                             // with a mask, zoneout of the last state, and layer normalization
  enum { rows, columns } contiguous = rows;  // of the weights
  bool in_place = false;                     // the weights are given to the calls themselves
  std::vector<std::uint8_t> mask;
  std::vector<T> zoneout;
  std::vector<T> x, kernel, recurrent, bias, parameters, projection, layer_norm, cell_norm, initial[kMaxStates], dy,
      dfinal[kMaxStates];
  std::vector<T> y, final_state[kMaxStates], tape, dx, dkernel, drecurrent, dbias, dparameters, dprojection,
      dlayer_norm, dcell_norm, dinitial[kMaxStates];

  Problem(Cell cell, Index B, Index steps, Index I, Index H, bool extended = false)
      : cell(cell),
        B(B),
        steps(steps),
        I(I),
        H(H),
        G(cell_traits(cell).gates),
        traits(cell_traits(cell)),
        R(traits.projected ? (2 * H + 2) / 3 : H),
        extended(extended) {
    std::mt19937 generator(7);
    const auto random = [&](Index n, double scale) {
      std::uniform_real_distribution<double> uniform(-scale, scale);
      std::vector<T> values(static_cast<std::size_t>(n));
      for (T& v : values) v = static_cast<T>(uniform(generator));
      return values;
    };
    x = random(B * steps * I, 1);
    kernel = random(I * G * H, 1 / std::sqrt(I + 1.0));
    recurrent = random(width(0) * G * H, 1 / std::sqrt(double(width(0))));
    bias = random(traits.bias_rows * G * H, 0.5);
    parameters = random(traits.parameters * H, 0.5);
    projection = random(traits.projected ? H * R : 0, 1 / std::sqrt(double(H)));
    layer_norm = random(extended && cell != Cell::indrnn ? 2 * G * H : 0, 1);
    cell_norm = random(traits.cell_norm ? 2 * H : 0, 1);
    dy = random(B * steps * R, 1);
    zoneout = random(B * steps * width(traits.states - 1), 0.4);
    for (Index i = 0; i < B * steps; ++i) mask.push_back(generator() % 4 > 0);
    for (int s = 0; s < traits.states; ++s) {
      initial[s] = random(B * width(s), 1);
      dfinal[s] = random(B * width(s), 1);
    }
  }

  Index width(int s) const { return s > 0 ? H : traits.hidden > 1 ? traits.hidden * H : R; }

  Weights<T> weights() const {
    const auto matrix = [&](const std::vector<T>& values, Index height, Index width) {
      return contiguous == rows ? MatrixView<T>{values.data(), width, 1} : MatrixView<T>{values.data(), 1, height};
    };
    return {cell,
            I,
            H,
            matrix(kernel, I, G * H),
            matrix(recurrent, width(0), G * H),
            {bias.data(), G * H, 1},
            {parameters.data(), H, 1},
            R,
            matrix(projection, H, R),
            {layer_norm.empty() ? nullptr : layer_norm.data(), G * H, 1},
            {cell_norm.empty() ? nullptr : cell_norm.data(), H, 1}};
  }
  bool run(const Forward<T>& call) const {
    return in_place ? forward(weights(), call) : forward(PackedWeights<T>(weights()), call);
  }
  bool run(const Backward<T>& call) const {
    return in_place ? backward(weights(), call) : backward(PackedWeights<T>(weights(), Pass::backward), call);
  }

  /// The mask and zoneout from row b0 and step t0 on.
  void extend(Call<T>& call, Index b0, Index t0) const {
    if (!extended) return;
    const int last = traits.states - 1;
    const Index n = width(last);
    call.mask = mask.data() + b0 * steps + t0;
    call.mask_batch_stride = steps;
    call.mask_time_stride = 1;
    call.zoneout[last] = zoneout.data() + (b0 * steps + t0) * n;
    call.zoneout_batch_stride[last] = steps * n;
    call.zoneout_time_stride[last] = n;
  }

  /// Rows [b0, b1), steps [t0, t1): inference into y and final_state, with a tape of its own if `keep`.
  bool run_forward(bool keep, Index b0, Index b1, Index t0, Index t1, Interrupt interrupt = {}) {
    Forward<T> call{};
    call.batch = b1 - b0;
    call.time = t1 - t0;
    call.x = x.data() + b0 * steps * I + t0 * I;
    call.x_batch_stride = steps * I;
    call.x_time_stride = I;
    y.resize(static_cast<std::size_t>(B * steps * R));
    call.y = y.data() + b0 * steps * R + t0 * R;
    call.y_batch_stride = steps * R;
    call.y_time_stride = R;
    for (int s = 0; s < traits.states; ++s) {
      final_state[s].resize(static_cast<std::size_t>(B * width(s)));
      call.initial_state[s] = initial[s].data() + b0 * width(s);
      call.final_state[s] = final_state[s].data() + b0 * width(s);
    }
    if (keep) {
      tape.assign(static_cast<std::size_t>(call.time * call.batch * tape_slots(weights(), extended) * H), T(0));
      call.tape = tape.data();
    }
    extend(call, b0, t0);
    call.interrupt = interrupt;
    return run(call);
  }
  void run_forward(bool keep) { run_forward(keep, 0, B, 0, steps); }

  void run_backward() {
    Backward<T> call{};
    call.batch = B;
    call.time = steps;
    call.x = x.data();
    call.x_batch_stride = steps * I;
    call.x_time_stride = I;
    call.tape = tape.data();
    call.dy = dy.data();
    call.dy_batch_stride = steps * R;
    call.dy_time_stride = R;
    dx.resize(x.size());
    call.dx = dx.data();
    call.dx_batch_stride = steps * I;
    call.dx_time_stride = I;
    dkernel.resize(kernel.size());
    drecurrent.resize(recurrent.size());
    dbias.resize(bias.size());
    dparameters.resize(parameters.size());
    dprojection.resize(projection.size());
    dlayer_norm.resize(layer_norm.size());
    dcell_norm.resize(cell_norm.size());
    call.dkernel = dkernel.data();
    call.drecurrent_kernel = drecurrent.data();
    call.dbias = dbias.data();
    call.dparameters = dparameters.data();
    call.dprojection = dprojection.data();
    call.dlayer_norm = dlayer_norm.data();
    call.dcell_norm = dcell_norm.data();
    for (int s = 0; s < traits.states; ++s) {
      dinitial[s].resize(initial[s].size());
      call.initial_state[s] = initial[s].data();
      call.dfinal_state[s] = dfinal[s].data();
      call.dinitial_state[s] = dinitial[s].data();
    }
    extend(call, 0, 0);
    run(call);
  }

  /// The scalar whose gradient run_backward computes.
  double loss() {
    run_forward(false);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += double(y[i]) * double(dy[i]);
    for (int s = 0; s < traits.states; ++s)
      for (std::size_t i = 0; i < dfinal[s].size(); ++i) sum += double(final_state[s][i]) * double(dfinal[s][i]);
    return sum;
  }
};

struct Sizes {
  Index B, steps, I, H;
};
constexpr Sizes kSizes[] = {{1, 1, 1, 1},   {2, 3, 3, 5}, {7, 4, 17, 33}, {3, 40, 5, 65},
                            {20, 3, 2, 16}, {0, 3, 2, 4}, {3, 0, 2, 4},   {2, 3, 0, 4}};

/// Of which the weights are read where they lie.
constexpr Sizes kSmallSizes[] = {{1, 1, 1, 1},    {1, 1, 64, 256}, {8, 1, 17, 33},  {2, 2, 3, 5},
                                 {1, 3, 40, 24},  {5, 1, 19, 65},  {1, 2, 100, 72}, {3, 1, 0, 9},
                                 {3, 1, 33, 130}, {2, 4, 7, 40},   {1, 5, 33, 20},  {2, 4, 100, 130}};

std::string label(const char* property, Cell cell, Sizes s) {
  return std::string(property) + ": " + cell_traits(cell).name + " " + std::to_string(s.B) + " " +
         std::to_string(s.steps) + " " + std::to_string(s.I) + " " + std::to_string(s.H);
}

template <class T>
void result_does_not_depend_on_threads_or_batch_or_time_split(Cell cell, Sizes s, bool extended) {
  Problem<T> one(cell, s.B, s.steps, s.I, s.H, extended);
  set_num_threads(1);
  one.run_forward(true);
  one.run_backward();
  for (int threads : {2, 3, 5}) {
    Problem<T> other(cell, s.B, s.steps, s.I, s.H, extended);
    set_num_threads(threads);
    other.run_forward(true);
    other.run_backward();
    check(other.y == one.y && other.tape == one.tape && other.dx == one.dx && other.dkernel == one.dkernel &&
              other.drecurrent == one.drecurrent && other.dbias == one.dbias && other.dprojection == one.dprojection &&
              other.dlayer_norm == one.dlayer_norm && other.dcell_norm == one.dcell_norm &&
              other.dinitial[0] == one.dinitial[0],
          label("result does not depend on threads", cell, s));
  }
  set_num_threads(2);
  Problem<T> rows(cell, s.B, s.steps, s.I, s.H, extended);
  for (Index b = 0; b < s.B; b += 2) rows.run_forward(false, b, std::min(s.B, b + 2), 0, s.steps);
  check(s.B == 0 || (rows.y == one.y && rows.final_state[0] == one.final_state[0]),
        label("result does not depend on batch split", cell, s));
  Problem<T> steps(cell, s.B, s.steps, s.I, s.H);
  for (Index t = 0; t < s.steps && !extended; ++t) {
    steps.run_forward(false, 0, s.B, t, t + 1);
    for (int i = 0; i < steps.traits.states; ++i) steps.initial[i] = steps.final_state[i];
  }
  check(extended || s.steps == 0 || steps.y == one.y, label("steps one at a time equal a sequence", cell, s));
  set_num_threads(0);
}

/// Of calls that are few enough rows and steps, in either layout, on any number of threads.
template <class T>
void weights_in_place_give_the_bits_of_packed_ones(Cell cell, Sizes s, bool extended) {
  for (const auto contiguous : {Problem<T>::rows, Problem<T>::columns}) {
    Problem<T> packed(cell, s.B, s.steps, s.I, s.H, extended);
    packed.contiguous = contiguous;
    Forward<T> call{};
    call.batch = s.B;
    call.time = s.steps;
    const bool normalized = !packed.layer_norm.empty() || packed.traits.cell_norm;
    check(reads_in_place<T>(packed.weights(), call) != normalized, label("weights are read in place", cell, s));
    if (normalized) continue;
    packed.run_forward(true);
    packed.run_backward();
    for (int threads : {1, 2, 3}) {
      set_num_threads(threads);
      Problem<T> other(cell, s.B, s.steps, s.I, s.H, extended);
      other.contiguous = contiguous;
      other.in_place = true;
      other.run_forward(true);
      other.run_forward(true);  // right after another call it takes the threads that it may
      other.run_backward();
      const bool same = other.y == packed.y && other.tape == packed.tape && other.dx == packed.dx &&
                        other.dkernel == packed.dkernel && other.drecurrent == packed.drecurrent &&
                        other.dbias == packed.dbias && other.dparameters == packed.dparameters &&
                        other.dprojection == packed.dprojection && other.dinitial[0] == packed.dinitial[0] &&
                        other.dinitial[1] == packed.dinitial[1] && other.final_state[0] == packed.final_state[0];
      check(same, label("weights in place give the bits of packed ones", cell, s));
    }
  }
  set_num_threads(0);
}

void many_rows_or_factors_or_strides_are_packed() {
  Problem<float> p(Cell::lstm, 1, 1, 5, 7);
  Forward<float> call{};
  call.batch = call.time = 1;
  Weights<float> weights = p.weights();
  check(reads_in_place<float>(weights, call), "one row is read in place");
  call.batch = 100;
  check(!reads_in_place<float>(weights, call), "many rows are packed");
  call.batch = 1;
  call.time = 100;
  check(!reads_in_place<float>(weights, call), "many steps are packed");
  call.time = 6;
  check(!reads_in_place<float>(weights, call), "six steps are packed where weights are small");
  call.time = 1;
  call.input_factors = p.x.data();
  check(!reads_in_place<float>(weights, call), "factors for each gate are packed");
  call.input_factors = nullptr;
  weights.kernel.row_stride *= 2;
  weights.kernel.column_stride = 2;
  check(!reads_in_place<float>(weights, call), "rows with gaps are packed");
}

void gradients_equal_finite_differences(Cell cell, Sizes s, bool extended) {
  Problem<double> p(cell, s.B, s.steps, s.I, s.H, extended);
  p.run_forward(true);
  p.run_backward();
  const auto compare = [&](std::vector<double>& values, const std::vector<double>& gradient, const char* name) {
    double largest = 1e-3;
    for (double g : gradient) largest = std::max(largest, std::fabs(g));
    for (std::size_t i = 0; i < values.size(); i += 1 + values.size() / 25) {
      const double saved = values[i], step = 4e-6;
      values[i] = saved + step;
      const double up = p.loss();
      values[i] = saved - step;
      const double down = p.loss();
      values[i] = saved;
      check(std::fabs((up - down) / (2 * step) - gradient[i]) < 1e-7 * largest + 1e-8, label(name, cell, s));
    }
  };
  compare(p.x, p.dx, "dx");
  compare(p.kernel, p.dkernel, "dkernel");
  compare(p.recurrent, p.drecurrent, "drecurrent");
  compare(p.bias, p.dbias, "dbias");
  compare(p.parameters, p.dparameters, "dparameters");
  compare(p.projection, p.dprojection, "dprojection");
  compare(p.layer_norm, p.dlayer_norm, "dlayer_norm");
  compare(p.cell_norm, p.dcell_norm, "dcell_norm");
  for (int i = 0; i < p.traits.states; ++i) compare(p.initial[i], p.dinitial[i], "dinitial");
}

void float_follows_double(Cell cell, Sizes s) {
  Problem<double> wide(cell, s.B, s.steps, s.I, s.H);
  Problem<float> narrow(cell, s.B, s.steps, s.I, s.H);
  wide.run_forward(false);
  narrow.run_forward(false);
  for (std::size_t i = 0; i < wide.y.size(); ++i)
    check(std::fabs(wide.y[i] - double(narrow.y[i])) < 1e-5, label("float follows double", cell, s));
}

void a_call_can_be_interrupted() {
  for (int threads : {1, 2}) {
    set_num_threads(threads);
    Problem<float> p(Cell::lstm, 4, 4000, 64, 256);
    int inquiries = 0;
    const Interrupt interrupt{[](void* count) { return ++*static_cast<int*>(count) == 2; }, &inquiries};
    check(!p.run_forward(false, 0, p.B, 0, p.steps, interrupt), "an interrupted call returns false");
    check(inquiries == 2, "nobody asks again after an interrupt");
    check(p.run_forward(false, 0, p.B, 0, 10), "the next call runs");
  }
  set_num_threads(0);
}

void large_memory_is_used_again() {
  release_memory();
  for (const std::int64_t size : {std::int64_t(1) << 19, std::int64_t(5) << 20}) {
    Memory first = allocate(size), second = allocate(size);
    void* const address = first.get();
    check(address && second.get() && address != second.get(), "two owners, two blocks");
    check(reinterpret_cast<std::uintptr_t>(address) % 64 == 0, "memory is aligned to a cache line");
    std::memset(address, 1, static_cast<std::size_t>(size));
    first.reset();
    const Memory other = allocate(4 * size);
    check(other.get() != address, "a kept block is not cut from");
    first = allocate(size - 1);
    check(first.get() == address, "a kept block serves the next call of its size");
  }
  release_memory();
  check(!allocate(0), "no bytes, no memory");
}

void wrong_arguments_throw() {
  Problem<float> p(Cell::gru, 2, 3, 4, 5);
  Forward<float> call{};
  call.batch = -1;
  check_throws([&] { forward(PackedWeights<float>(p.weights()), call); }, "batch and time must not be negative");
  call.batch = Index(1) << 62;
  call.x = p.x.data();
  check_throws([&] { forward(PackedWeights<float>(p.weights()), call); }, "exceed the address space");
  call.batch = 1;
  call.time = 1;
  check_throws([&] { forward(PackedWeights<float>(p.weights(), Pass::backward), call); }, "packed for Pass::forward");
  call.x = nullptr;
  check_throws([&] { forward(PackedWeights<float>(p.weights()), call); },
               "x, or with ids the embedding, must not be null");
  Weights<float> weights = p.weights();
  weights.units = 0;
  check_throws([&] { PackedWeights<float>{weights}; }, "units must be at least 1");
  check_throws([] { set_isa("mmx"); }, "got 'mmx'");
  check_throws([] { set_num_threads(-1); }, "at least 1");
  check_throws([] { cell_from_name("elman"); }, "simple_rnn, lstm, gru, gru_reset_before");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : isa();
  const std::vector<std::string> usable = available_isas();
  if (std::find(usable.begin(), usable.end(), name) == usable.end()) {
    std::printf("%s does not run on this processor\n", name.c_str());
    return 77;
  }
  set_isa(name);
  for (int i = 0; i < kCells; ++i) {
    const Cell cell = static_cast<Cell>(i);
    for (const Sizes& sizes : kSizes) {
      for (bool extended : {false, true}) {
        result_does_not_depend_on_threads_or_batch_or_time_split<float>(cell, sizes, extended);
        result_does_not_depend_on_threads_or_batch_or_time_split<double>(cell, sizes, extended);
        gradients_equal_finite_differences(cell, sizes, extended);
      }
      float_follows_double(cell, sizes);
    }
    for (const Sizes& sizes : kSmallSizes)
      for (bool extended : {false, true}) {
        weights_in_place_give_the_bits_of_packed_ones<float>(cell, sizes, extended);
        weights_in_place_give_the_bits_of_packed_ones<double>(cell, sizes, extended);
      }
  }
  weights_in_place_give_the_bits_of_packed_ones<float>(Cell::lstm, {1, 8, 150, 300}, false);  // large, so more steps
  many_rows_or_factors_or_strides_are_packed();
  a_call_can_be_interrupted();
  large_memory_is_used_again();
  wrong_arguments_throw();
  std::printf("%s: %d failures\n", name.c_str(), failures);
  return failures != 0;
}

// fastrnn: fused recurrent kernels for the CPU, forward and backward. The whole public C++ interface.
//
// Legend: B batch, T time steps, I inputs, H units, G gates. Shapes in brackets, the last axis contiguous unless a
// stride is named. All strides are in elements, not bytes, and may be negative or zero for what is only read.
//
// Thread safety: every function may be called from any number of threads at once. A PackedWeights may be shared; the
// buffers of a call belong to that call until it returns. Results have the same bits for any number of threads.
//
// Errors: std::invalid_argument for a wrong argument, std::bad_alloc when memory runs out. Nothing else is thrown.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace fastrnn {

/// The cells, each with its gates in the order of the columns of its kernels (the order of Keras).
enum class Cell {
  simple_rnn,        ///< h = tanh(x.W + h'.U + b)
  lstm,              ///< gates i f c o; states h c
  gru,               ///< gates z r h, reset gate applied after the product (reset_after=True); bias [2, 3H]
  gru_reset_before,  ///< gates z r h, reset gate applied before the product (reset_after=False); bias [3H]
  // LSTMs without one of the gates, or with one gate that both forgets and lets in (f = 1 - i): the columns of the gate
  // that there is not are left out. `_peephole`: the gates see c, through the parameters, in the order i f o.
  lstm_peephole,
  lstm_nig,
  lstm_nig_peephole,
  lstm_nfg,
  lstm_nfg_peephole,
  lstm_nog,
  lstm_nog_peephole,
  lstm_cifg,
  lstm_cifg_peephole,
  lstm_projected,           ///< h = (o tanh(c)).P, narrower than c
  lstm_projected_peephole,  ///< both
  /// Gates that see the gates of the step before: state 0 is [h i f o] side by side, 4H wide. What is said of h below
  /// as a state (initial, final, zoneout, recurrent_factors) and of U's rows holds of all 4H; y is h.
  lstm_fgr,
  lstm_fgr_peephole,
  // `_normalized`: h = o tanh(n) with n the layer normalization of c by cell_norm.
  lstm_normalized,
  lstm_peephole_normalized,
  lstm_nig_normalized,
  lstm_nig_peephole_normalized,
  lstm_nfg_normalized,
  lstm_nfg_peephole_normalized,
  lstm_nog_normalized,
  lstm_nog_peephole_normalized,
  lstm_cifg_normalized,
  lstm_cifg_peephole_normalized,
  lstm_projected_normalized,
  lstm_projected_peephole_normalized,
  indrnn,  ///< h = act(x.W + u h' + b) with u the one vector of parameters; no recurrent kernel
};
constexpr int kCells = static_cast<int>(Cell::indrnn) + 1;  ///< how many there are

constexpr int kMaxStates = 2;

/// What a cell needs, by number.
struct CellTraits {
  const char* name;
  int gates;       ///< G: the kernels have G*H columns
  int states;      ///< h, or h and c
  int bias_rows;   ///< the bias has bias_rows * G*H elements
  int parameters;  ///< P: vectors of H per-unit parameters
  int tape_slots;  ///< of a tape with sigmoid and tanh; tape_slots() says it of any weights
  bool projected;  ///< h is R wide, not H: what is of h below is then [B, R] and [B, T, R], and U [R, G*H]
  bool cell_norm;  ///< c is normalized on its way to h
  int hidden;      ///< how many vectors of H state 0 has, which U multiplies: 1, h alone, but of lstm_fgr; y is h
};
CellTraits cell_traits(Cell cell);
Cell cell_from_name(const std::string& name);  ///< "simple_rnn", "lstm" …

/// An activation: a formula in two parameters, on sums that are clipped to [-clip, clip] before. The formulas are those
/// of Python's fastrnn.activations, in the same order.
enum class ActivationKind {
  tanh,
  sigmoid,
  affine,
  hard_tanh,
  leaky_relu,
  hard_sigmoid,
  softsign,
  softplus,
  log_sigmoid,
  elu,
  celu,
  exponential,
  silu,
  gelu,
  mish,
  hard_silu,
  tanh_shrink,
  scaled_tanh,
  thresholded_relu,
  soft_shrink,
  hard_shrink,
  squareplus,
  sparse_plus
};
constexpr int kActivationKinds = static_cast<int>(ActivationKind::sparse_plus) + 1;
struct Activation {
  ActivationKind kind;
  double alpha = 0, beta = 0;
  double clip = std::numeric_limits<double>::infinity();
};
constexpr int kActivations = 3;

/// A matrix that is read: element (r, c) is data[r * row_stride + c * column_stride].
template <class T>
struct MatrixView {
  const T* data;
  std::int64_t row_stride, column_stride;
};

/// The weights of one cell. Read during the construction of PackedWeights, or during a call that takes them itself.
template <class T>
struct Weights {
  Cell cell;
  std::int64_t inputs, units;
  MatrixView<T> kernel;            ///< W [I, G*H]
  MatrixView<T> recurrent_kernel;  ///< U [H, G*H]
  MatrixView<T> bias;              ///< b [bias_rows, G*H]; data null: no bias
  MatrixView<T> parameters{};      ///< [P, H]
  std::int64_t outputs = 0;        ///< R, how wide h is, of a cell with a projection: from 1 to H. U is then [R, G*H].
                                   ///< Of others 0 or H.
  MatrixView<T> projection{};      ///< [H, R]
  /// Layer normalization: gains [2, G*H] of x.W and of what U multiplies, each normalized over its columns before b is
  /// added (gru_reset_before: those of z and r, and that of h, apart); data null: none. Not for indrnn.
  MatrixView<T> layer_norm{};
  MatrixView<T> cell_norm{};  ///< [2, H]: gain and bias of the normalized c, of a cell that has it
  /// Of the gates, of the candidate, and (lstm) of c on its way to h. Other than these run in the general kernels,
  /// which take longer for small layers.
  Activation activations[kActivations] = {{ActivationKind::sigmoid}, {ActivationKind::tanh}, {ActivationKind::tanh}};
};

enum class Pass { forward, backward };

/// Memory that is given back when its owner is destroyed.
struct ReleaseMemory {
  std::int64_t size;  ///< bytes
  void operator()(void* data) const noexcept;
};
using Memory = std::unique_ptr<void, ReleaseMemory>;
/// Uninitialised memory aligned to a cache line, or to a huge page where it is large; null for no bytes. Blocks of 256
/// KiB and more are kept when they are given back, 1 GiB in all, for the next call that asks for such a size: fresh
/// pages cost more than many a pass over them. The system may take the pages of kept blocks when it runs short.
/// Packed weights and workspaces come from here; a tape may.
Memory allocate(std::int64_t bytes);
void release_memory();  ///< Give the kept blocks back to the system.

/// Weights laid out for one pass (backward reads them transposed) and for the instruction set in use when they were
/// packed; calls that take them use that same instruction set. Packing costs about as much as copying the weights;
/// pack once, call often.
template <class T>
class PackedWeights {
 public:
  explicit PackedWeights(const Weights<T>& weights, Pass pass = Pass::forward);
  ~PackedWeights();
  PackedWeights(PackedWeights&&) noexcept;
  PackedWeights& operator=(PackedWeights&&) noexcept;

  Cell cell() const;
  std::int64_t inputs() const;
  std::int64_t units() const;
  std::int64_t outputs() const;  ///< how wide h is: units(), or less with a projection
  const char* isa() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

/// Asked now and then by the calling thread during a long call (roughly every 50 ms); true ends the call early, and
/// then the contents of its output buffers are unspecified.
struct Interrupt {
  bool (*requested)(void* context) = nullptr;
  void* context = nullptr;
};

/// What the passes over [B, T, I] have in common. Process a sequence backwards with x (and the mask) at the last step
/// and negative time strides.
template <class T>
struct Call {
  std::int64_t batch, time;
  const T* x;  ///< read [B, T, I]; null with ids
  std::int64_t x_batch_stride, x_time_stride;
  /// Read [B, T], with the strides of x, each from 0 on; null: none. The input of a step is then row `id` of embedding,
  /// read [any, I], contiguous. Masked ids are not read; nothing checks the others.
  const std::int64_t* ids = nullptr;
  const T* embedding = nullptr;
  const T* initial_state[kMaxStates] = {};  ///< read [B, H] each; null: zeros
  /// Read [B, T]; null: all true. Where it is 0 the step is left out for that row: x is not read, the states stay, and
  /// y repeats what it was the step before (zeros before the first step), or is zero if masked_output_is_zero.
  const std::uint8_t* mask = nullptr;
  std::int64_t mask_batch_stride = 0, mask_time_stride = 0;
  bool masked_output_is_zero = false;
  /// Factors of x, read [B, G, I], and of what the recurrent kernel multiplies, read [B, G, H], for the product of each
  /// gate, the same at every step (dropout); null: none.
  const T* input_factors = nullptr;
  const T* recurrent_factors = nullptr;
  /// Zoneout: read [B, T, H] for each state; null: none. A step's state is z * the one before + (1 - z) * the new one.
  /// The tape then has one more slot for each vector of the states.
  const T* zoneout[kMaxStates] = {};
  std::int64_t zoneout_batch_stride[kMaxStates] = {}, zoneout_time_stride[kMaxStates] = {};
  int threads = 0;  ///< the most that this call may use; 0: num_threads()
  Interrupt interrupt;
};

/// One forward pass.
template <class T>
struct Forward : Call<T> {
  T* y = nullptr;  ///< written [B, T, H], h of every step; null: not wanted; may not alias anything that is read
  std::int64_t y_batch_stride = 0, y_time_stride = 0;
  T* final_state[kMaxStates] = {};  ///< written [B, H] each; null: not wanted; may not alias initial_state
  /// Written [B, T, tape_slots(), H], for backward; null: inference. The slots are the cell's gate values (or the sums
  /// that they are made of), then its states (lstm: i f c~ o h c; gru: z r n, recurrent part of n, h; gru_reset_before:
  /// z r r*h' n h; simple_rnn: h), with zoneout its new states, with layer normalization the 2 G products. With a mask,
  /// rows and steps are in the order in which they are computed.
  T* tape = nullptr;
};

/// The gradient of one forward pass, given what that was given, and its tape. Everything written is overwritten, not
/// accumulated.
template <class T>
struct Backward : Call<T> {
  const T* tape;          ///< read [B, T, tape_slots(), H]
  const T* dy = nullptr;  ///< read [B, T, H]: gradient of y; null: zeros
  std::int64_t dy_batch_stride = 0, dy_time_stride = 0;
  const T* dfinal_state[kMaxStates] = {};  ///< read [B, H]: gradients of the final states; null: zeros
  T* dx = nullptr;                         ///< written [B, T, I]; null: not wanted
  std::int64_t dx_batch_stride = 0, dx_time_stride = 0;
  T* dkernel;                          ///< written [I, G*H], contiguous
  T* drecurrent_kernel;                ///< written [H, G*H], contiguous (indrnn has none)
  T* dbias = nullptr;                  ///< written [bias_rows, G*H], contiguous; null: not wanted
  T* dparameters = nullptr;            ///< written [P, H], contiguous; null only if there are none
  T* dprojection = nullptr;            ///< written [H, R], contiguous; null only if there is none
  T* dlayer_norm = nullptr;            ///< written [2, G*H], contiguous; null only if there is none
  T* dcell_norm = nullptr;             ///< written [2, H], contiguous; null only if there is none
  T* dinitial_state[kMaxStates] = {};  ///< written [B, H] each; null: not wanted
};

/// How many values per unit, row and step a tape has, without zoneout or with it.
template <class T>
int tape_slots(const Weights<T>& weights, bool zoneout = false);

/// Run one pass. False: the interrupt asked to stop.
template <class T>
bool forward(const PackedWeights<T>& weights, const Forward<T>& call);  ///< weights packed for Pass::forward
template <class T>
bool backward(const PackedWeights<T>& weights, const Backward<T>& call);  ///< weights packed for Pass::backward

/// The same with weights that are used once: read where they lie if the call has few rows times steps, as packing them
/// would take longer than all else, or packed for this call. The results have the same bits either way.
template <class T>
bool forward(const Weights<T>& weights, const Forward<T>& call);
template <class T>
bool backward(const Weights<T>& weights, const Backward<T>& call);
/// Whether these would read the weights where they lie.
template <class T>
bool reads_in_place(const Weights<T>& weights, const Call<T>& call);

/// How many calls of forward or of backward have run a cell's kernels since the library was loaded, in all threads.
std::int64_t kernel_calls(Cell cell, Pass pass);

/// Threads that one call may use: what was set, else what OpenMP gives this thread (OMP_NUM_THREADS, affinity). A small
/// call uses fewer. A process forked from one that has loaded this library always runs on one: OpenMP's pool does not
/// survive fork.
int num_threads();
void set_num_threads(int n);  ///< n >= 1; 0: back to OpenMP's number. Concerns fastrnn alone.

/// Instruction sets, weakest first: compiled into this library, usable on this processor, and the one in use. The best
/// is used unless FASTRNN_ISA names another when it is first needed. set_isa concerns weights packed after it.
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();
const char* isa();
void set_isa(const std::string& name);

/// The kernels' own tanh and sigmoid over n values, for accuracy tests: at most 2 ulp from the true value in float32.
template <class T>
void tanh(const T* x, T* y, std::int64_t n);
template <class T>
void sigmoid(const T* x, T* y, std::int64_t n);

/// What this machine can do with the instruction set in use, for benchmarks.
enum class Limit {
  flops,      ///< fused multiply-adds in registers, two operations each: operations per second of all threads together
  bandwidth,  ///< each thread reads so many bytes of its own over and over: bytes per second of all threads together
  barrier,    ///< seconds that a barrier of the threads takes
  activation  ///< tanh on values in the first-level cache: seconds per value, of all threads together
};
/// Measure it, in 10 to 300 ms. T is the type of the vectors; bytes >= 1 is read by `bandwidth` alone.
template <class T>
double measure_limit(Limit limit, int threads, std::int64_t bytes = 1);

const char* version();
const char* compiler();

}  // namespace fastrnn
